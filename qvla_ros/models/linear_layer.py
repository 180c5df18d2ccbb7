"""The unit that quantization works on: one weight matrix of the network."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["vision", "language"]


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A weight matrix that may be quantized, row by row.

    Attributes:
        name: Module path in the network, e.g. ``language_model.model.layers.0.mlp.up_proj``.
        rows: Output channels.
        columns: Input channels (for a patch embedding: ``3 * patch * patch``).
        part: Which part of the model it belongs to.
    """

    name: str
    rows: int
    columns: int
    part: Part

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns
