"""The observation that every checkpoint of a robot is asked about, to know it again elsewhere."""

from collections.abc import Sequence

import numpy as np

from qvla_ros.observation import Observation

_SIZE = 96
_INSTRUCTION = "pick up the object"


def golden_observation(image_names: Sequence[str], state_dim: int) -> Observation:
    """Soft waves of color, another one for each camera, and a small state; the same everywhere."""
    across = np.linspace(0, 2 * np.pi, _SIZE)
    images = {}
    for number, name in enumerate(image_names, start=1):
        waves = [np.sin(number * across[:, None] + (c + 1) * across[None, :]) for c in range(3)]
        pixels = np.round(127.5 * (1 + np.stack(waves, axis=2)))
        images[name] = pixels.astype(np.uint8)
    state = np.linspace(-0.1, 0.1, state_dim, dtype=np.float32)
    return Observation(0, images, state, _INSTRUCTION)
