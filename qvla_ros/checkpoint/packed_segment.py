"""The rows of one bit width in a packed layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.bitpack import (
    BLOCK_COLUMNS,
    packed_bytes_per_row,
    padded_columns,
    unpack_codes,
)
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.errors import CheckpointError

_CHECKED_ROWS = 256  # rows looked at together in `validate`, which bounds its memory


def column_groups(columns: int) -> int:
    """Groups of columns that share a scale: one for each block of codes."""
    return padded_columns(columns) // BLOCK_COLUMNS


@dataclass(frozen=True, slots=True, eq=False)
class PackedSegment:
    """The rows of one bit width; *columns* are those that the layer stores.

    Attributes:
        bits: 16, 8, 4, 3 or 2.
        codes: ``uint8 [rows, packed_bytes_per_row(columns, bits)]`` in split order; for 16 bits
            the weight itself, ``bfloat16 [rows, columns]``.
        scale: ``bfloat16 [rows]`` or ``[rows, column_groups(columns)]``, positive; ``None`` for
            16 bits.
        zero: The code that stands for 0, in the scale's dtype and shape; ``None`` for 16 bits.
    """

    bits: int
    codes: torch.Tensor
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows in the segment."""
        return self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale and zero."""
        return sum(part.nbytes for part in (self.codes, self.scale, self.zero) if part is not None)

    @property
    def group_columns(self) -> int | None:
        """Columns that share a scale and a zero; ``None`` where a whole row does, or none."""
        return BLOCK_COLUMNS if self.scale is not None and self.scale.ndim == 2 else None

    def validate(self, layer: str, columns: int) -> None:
        """Check shapes, dtypes, and the finiteness of every value.

        Raises:
            CheckpointError: Something is wrong; the message names the layer and the part.
        """
        if self.bits == 16:
            self._validate_weight(layer, columns)
        else:
            self._validate_codes(layer, columns)
            self._validate_grid(layer, columns)

    def _validate_codes(self, layer: str, columns: int) -> None:
        where = f"segment{self.bits}.codes"
        width = packed_bytes_per_row(columns, self.bits)
        expect_tensor(layer, where, self.codes, torch.uint8, (self.rows, width))
        last_block = BLOCK_COLUMNS * self.bits // 8
        true_columns = columns % BLOCK_COLUMNS
        if not true_columns:
            return
        for start in range(0, self.rows, _CHECKED_ROWS):
            block = self.codes[start : start + _CHECKED_ROWS, -last_block:].contiguous()
            if bool(unpack_codes(block, self.bits, BLOCK_COLUMNS)[:, true_columns:].any()):
                raise layer_error(
                    layer,
                    CheckpointFault.PADDING,
                    f"{where} has a code other than 0 beyond column {columns}",
                )

    def _validate_grid(self, layer: str, columns: int) -> None:
        shape: tuple[int, ...] = (self.rows,)
        if self.group_columns is not None:
            shape = (self.rows, column_groups(columns))
        for part, values, fault in (
            ("scale", self.scale, CheckpointFault.SCALE),
            ("zero", self.zero, CheckpointFault.ZERO),
        ):
            where = f"segment{self.bits}.{part}"
            if values is None:
                raise layer_error(layer, fault, f"{where} is absent")
            expect_tensor(layer, where, values, torch.bfloat16, shape)
            bad = ~torch.isfinite(values)
            if part == "scale":
                bad |= values <= 0
            if bool(bad.any()):
                index = bad.nonzero()[0].tolist()
                rule = "finite and positive" if part == "scale" else "finite"
                value = float(values[tuple(index)])
                raise layer_error(layer, fault, f"{where}{index} is {value}: it must be {rule}")

    def _validate_weight(self, layer: str, columns: int) -> None:
        where = "segment16.weight"
        expect_tensor(layer, where, self.codes, torch.bfloat16, (self.rows, columns))
        for start in range(0, self.rows, _CHECKED_ROWS):
            if not bool(torch.isfinite(self.codes[start : start + _CHECKED_ROWS]).all()):
                raise layer_error(
                    layer, CheckpointFault.WEIGHT, f"{where} holds a value that is not finite"
                )


def expect_tensor(
    layer: str, where: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    """Raise ``CheckpointError`` unless the tensor has this dtype and shape."""
    if tensor.dtype != dtype:
        raise layer_error(
            layer, CheckpointFault.TENSOR_DTYPE, f"{where} must be {dtype}, not {tensor.dtype}"
        )
    if tuple(tensor.shape) != tuple(shape):
        raise layer_error(
            layer,
            CheckpointFault.TENSOR_SHAPE,
            f"{where} must have the shape {list(shape)}, not {list(tensor.shape)}",
        )


def layer_error(layer: str, fault: CheckpointFault, message: str) -> CheckpointError:
    """An error that names the layer."""
    return CheckpointError(f"layer {layer!r}: {message}", fault=fault)
