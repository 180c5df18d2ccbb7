"""The weight matrix of one Linear whose rows have their own bit widths, packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.bitpack import (
    BLOCK_COLUMNS,
    pack_codes,
    packed_bytes_per_row,
    unpack_codes,
)
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.errors import CheckpointError

BIT_WIDTHS = (16, 8, 4, 2, 0)
"""Widths a row may have, in storage order. 16 is bfloat16 unchanged; 0 is a row of zeros."""

STORED_WIDTHS = BIT_WIDTHS[:-1]
"""Widths that have a segment: 0-bit rows take no bytes."""

_CHECKED_ROWS = 256  # rows looked at together in `validate`, which bounds its memory


@dataclass(frozen=True, slots=True, eq=False)
class PackedSegment:
    """The rows of one bit width.

    Attributes:
        bits: 16, 8, 4 or 2.
        codes: ``uint8 [rows, packed_bytes_per_row(columns, bits)]`` in split order; for 16 bits
            the weight itself, ``bfloat16 [rows, columns]``.
        scale: ``bfloat16 [rows]``, positive; ``None`` for 16 bits.
        zero: ``bfloat16 [rows]``, the code that stands for 0; ``None`` for 16 bits.
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


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight matrix ``[rows, columns]`` of mixed widths: ``w = (q - zero) * scale`` in float32.

    Rows are stored sorted by width, widest first, and in canonical order within a width; rows of
    0 bits are not stored and stand for zeros.

    Attributes:
        name: Module path of the Linear in the network.
        rows: Output channels, 0-bit rows included.
        columns: Input channels.
        segments: At most one for each of 16, 8, 4, 2 bits, in this order, none of them empty.
        row_order: ``int32 [stored rows]``: the canonical row of each stored row.
    """

    name: str
    rows: int
    columns: int
    segments: tuple[PackedSegment, ...]
    row_order: torch.Tensor

    @classmethod
    def assemble(
        cls,
        name: str,
        columns: int,
        row_bits: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        weight: torch.Tensor,
    ) -> "PackedLinear":
        """Sort the rows by width and pack their codes.

        Args:
            name: Module path of the Linear.
            columns: Input channels.
            row_bits: Integer ``[rows]``, each of 0, 2, 4, 8, 16.
            codes: ``uint8 [rows, columns]``; read for rows of 2, 4 and 8 bits only.
            scale: ``bfloat16 [rows]``, positive; read for the same rows only.
            zero: ``bfloat16 [rows]``; read for the same rows only.
            weight: Floating ``[rows, columns]``; read for the 16-bit rows only, which it must
                hold as bfloat16 values.

        Raises:
            ValueError: A shape, dtype, width or code is not as said.
            CheckpointError: A scale is not positive, or a value is not finite.
        """
        rows = row_bits.shape[0]
        if codes.shape != (rows, columns) or weight.shape != (rows, columns):
            raise ValueError(f"{name}: codes and weight must have the shape [{rows}, {columns}]")
        if scale.shape != (rows,) or zero.shape != (rows,):
            raise ValueError(f"{name}: scale and zero must have the shape [{rows}]")
        unknown = set(row_bits.tolist()) - set(BIT_WIDTHS)
        if unknown:
            raise ValueError(f"{name}: a row cannot have {sorted(unknown)} bits")
        segments = []
        order = []
        for bits in STORED_WIDTHS:
            index = torch.nonzero(row_bits == bits).flatten()
            if index.numel() == 0:
                continue
            order.append(index)
            if bits == 16:
                segments.append(PackedSegment(16, _as_bfloat16(name, weight[index])))
            else:
                packed = pack_codes(codes[index], bits)
                segments.append(PackedSegment(bits, packed, scale[index], zero[index]))
        row_order = torch.cat(order) if order else torch.empty(0)
        layer = cls(name, rows, columns, tuple(segments), row_order.to(torch.int32))
        layer.validate()
        return layer

    @property
    def stored_rows(self) -> int:
        """Rows that take bytes: all but those of 0 bits."""
        return sum(segment.rows for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """All bytes of the layer: codes, scales, zeros and the row order."""
        return sum(segment.nbytes for segment in self.segments) + self.row_order.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Mean width of the weights; scales, padding and the row order are not counted."""
        return sum(segment.bits * segment.rows for segment in self.segments) / self.rows

    def bits_per_row(self) -> torch.Tensor:
        """``int32 [rows]``: the width of each canonical row."""
        bits = torch.zeros(self.rows, dtype=torch.int32, device=self.row_order.device)
        start = 0
        for segment in self.segments:
            bits[self.row_order[start : start + segment.rows].long()] = segment.bits
            start += segment.rows
        return bits

    def validate(self) -> None:
        """Check shapes, dtypes, the row order and the finiteness of every value.

        Raises:
            CheckpointError: Something is wrong; the message names the layer and the part.
        """
        self._validate_widths()
        for segment in self.segments:
            if segment.bits == 16:
                self._validate_weight(segment)
            else:
                self._validate_codes(segment)
                self._validate_grid(segment)
        self._validate_row_order()

    def _validate_widths(self) -> None:
        widths = [segment.bits for segment in self.segments]
        if widths != [bits for bits in STORED_WIDTHS if bits in widths]:
            raise self._error(
                CheckpointFault.LAYER_SPEC,
                f"segments of {widths} bits: they must be of {STORED_WIDTHS}, once each, sorted",
            )
        if self.stored_rows > self.rows or any(not segment.rows for segment in self.segments):
            raise self._error(
                CheckpointFault.LAYER_SPEC,
                f"segments of {[segment.rows for segment in self.segments]} rows do not fit a "
                f"layer of {self.rows} rows",
            )

    def _validate_codes(self, segment: PackedSegment) -> None:
        where = f"segment{segment.bits}.codes"
        width = packed_bytes_per_row(self.columns, segment.bits)
        self._expect(where, segment.codes, torch.uint8, (segment.rows, width))
        last_block = BLOCK_COLUMNS * segment.bits // 8
        true_columns = self.columns % BLOCK_COLUMNS
        if true_columns and segment.codes.numel():
            padding = unpack_codes(
                segment.codes[:, -last_block:].contiguous(), segment.bits, BLOCK_COLUMNS
            )[:, true_columns:]
            if bool(padding.any()):
                raise self._error(
                    CheckpointFault.PADDING,
                    f"{where} has a code other than 0 beyond column {self.columns}",
                )

    def _validate_grid(self, segment: PackedSegment) -> None:
        for part, values, fault in (
            ("scale", segment.scale, CheckpointFault.SCALE),
            ("zero", segment.zero, CheckpointFault.ZERO),
        ):
            where = f"segment{segment.bits}.{part}"
            if values is None:
                raise self._error(fault, f"{where} is absent")
            self._expect(where, values, torch.bfloat16, (segment.rows,))
            bad = ~torch.isfinite(values)
            if part == "scale":
                bad |= values <= 0
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                rule = "finite and positive" if part == "scale" else "finite"
                raise self._error(
                    fault, f"{where}[{row}] is {float(values[row])}: it must be {rule}"
                )

    def _validate_weight(self, segment: PackedSegment) -> None:
        where = "segment16.weight"
        self._expect(where, segment.codes, torch.bfloat16, (segment.rows, self.columns))
        for start in range(0, segment.rows, _CHECKED_ROWS):
            if not bool(torch.isfinite(segment.codes[start : start + _CHECKED_ROWS]).all()):
                raise self._error(
                    CheckpointFault.WEIGHT, f"{where} holds a value that is not finite"
                )

    def _validate_row_order(self) -> None:
        self._expect("row_order", self.row_order, torch.int32, (self.stored_rows,))
        order = self.row_order.long()
        if order.numel() == 0:
            return
        if int(order.min()) < 0 or int(order.max()) >= self.rows:
            raise self._error(
                CheckpointFault.ROW_ORDER, f"row_order points outside the {self.rows} rows"
            )
        ascending = order.sort().values
        twice = ascending[1:][ascending.diff() == 0]
        if twice.numel():
            raise self._error(
                CheckpointFault.ROW_ORDER, f"row_order names row {int(twice[0])} twice"
            )
        for part in torch.split(order, [segment.rows for segment in self.segments]):
            if bool((part.diff() <= 0).any()):
                raise self._error(
                    CheckpointFault.ROW_ORDER, "row_order does not ascend within a segment"
                )

    def _expect(
        self, where: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        if tensor.dtype != dtype:
            raise self._error(
                CheckpointFault.TENSOR_DTYPE, f"{where} must be {dtype}, not {tensor.dtype}"
            )
        if tuple(tensor.shape) != tuple(shape):
            raise self._error(
                CheckpointFault.TENSOR_SHAPE,
                f"{where} must have the shape {list(shape)}, not {list(tensor.shape)}",
            )

    def _error(self, fault: CheckpointFault, message: str) -> CheckpointError:
        return CheckpointError(f"layer {self.name!r}: {message}", fault=fault)


def _as_bfloat16(name: str, weight: torch.Tensor) -> torch.Tensor:
    rounded = weight.to(torch.bfloat16)
    if not torch.equal(rounded.to(weight.dtype), weight):
        raise ValueError(f"{name}: a 16-bit row holds values that bfloat16 cannot hold")
    return rounded
