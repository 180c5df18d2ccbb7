"""What the robot sensed at one instant: the input of every policy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Observation:
    """One synchronous view of the robot and its surroundings.

    Attributes:
        stamp_ns: When the oldest of the inputs was sensed, nanoseconds on the robot's clock.
        images: Camera name to ``uint8 [height, width, 3]`` RGB, turned as the model
            was trained on them.
        state: ``float32 [state_dim]`` proprioception in robot units, in the model's order.
        instruction: The task in natural language, e.g. ``"pick up the black bowl"``.
    """

    stamp_ns: int
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image {name!r} must be uint8 [height, width, 3], "
                    f"not {image.dtype} {list(image.shape)}"
                )
        if self.state.dtype != np.float32 or self.state.ndim != 1:
            raise ValueError(
                f"state must be float32 [state_dim], "
                f"not {self.state.dtype} {list(self.state.shape)}"
            )
