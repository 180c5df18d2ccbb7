"""The weight matrix of one Linear whose rows have their own bit widths, packed."""

from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.bitpack import pack_codes
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.packed_segment import (
    PackedSegment,
    column_groups,
    expect_tensor,
    layer_error,
)

BIT_WIDTHS = (16, 8, 4, 3, 2, 0)
"""Widths a row may have, in storage order. 16 is bfloat16 unchanged; 0 is a row of zeros."""

STORED_WIDTHS = BIT_WIDTHS[:-1]
"""Widths that have a segment: 0-bit rows take no bytes."""

ACTIVATION_BITS = (16, 8)
"""How the input may be multiplied: as it is, or rounded to 8-bit integers row by row."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight matrix ``[rows, columns]`` of mixed widths: ``w = (q - zero) * scale`` in float32.

    Rows are stored sorted by width, widest first, and in canonical order within a width; rows of
    0 bits are not stored and stand for zeros, and so do removed columns.

    Attributes:
        name: Module path of the Linear in the network.
        rows: Output channels, 0-bit rows included.
        columns: Input channels, removed ones included.
        segments: At most one for each of 16, 8, 4, 3, 2 bits, in this order, none of them empty;
            all with scales of whole rows, or all with scales of column groups.
        row_order: ``int32 [stored rows]``: the canonical row of each stored row.
        activation_bits: 16, or 8: the rows with codes multiply the input rounded to integers.
        input_columns: ``int32 [stored columns]``, ascending: the input's columns that the stored
            weight multiplies; ``None`` if it is all of them.
    """

    name: str
    rows: int
    columns: int
    segments: tuple[PackedSegment, ...]
    row_order: torch.Tensor
    activation_bits: int = 16
    input_columns: torch.Tensor | None = None

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
        *,
        activation_bits: int = 16,
        input_columns: torch.Tensor | None = None,
    ) -> "PackedLinear":
        """Sort the rows by width and pack their codes.

        Args:
            name: Module path of the Linear.
            columns: Input channels, removed ones included.
            row_bits: Integer ``[rows]``, each of 0, 2, 3, 4, 8, 16.
            codes: ``uint8 [rows, stored columns]``; read for rows of 2, 3, 4 and 8 bits only.
            scale: ``bfloat16 [rows]`` or ``[rows, column_groups(stored columns)]``, positive;
                read for the same rows only.
            zero: ``bfloat16``, of the scale's shape; read for the same rows only.
            weight: Floating ``[rows, stored columns]``; read for the 16-bit rows only, which it
                must hold as bfloat16 values.
            activation_bits: 16 or 8.
            input_columns: Integer ``[stored columns]``, ascending: the columns that are kept; all
                of them, or ``None``, if none is removed.

        Raises:
            ValueError: A shape, dtype, width or code is not as said.
            CheckpointError: A scale is not positive, or a value is not finite.
        """
        rows = row_bits.shape[0]
        kept = columns if input_columns is None else len(input_columns)
        if codes.shape != (rows, kept) or weight.shape != (rows, kept):
            raise ValueError(f"{name}: codes and weight must have the shape [{rows}, {kept}]")
        shapes = ((rows,), (rows, column_groups(kept)))
        if tuple(scale.shape) not in shapes or zero.shape != scale.shape:
            raise ValueError(
                f"{name}: scale and zero must have the shape {list(shapes[0])}, or both "
                f"{list(shapes[1])} for groups of columns"
            )
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
        row_order = (torch.cat(order) if order else torch.empty(0)).to(torch.int32)
        if input_columns is not None:
            complete = input_columns.tolist() == list(range(columns))
            input_columns = None if complete else input_columns.to(torch.int32)
        layer = cls(
            name, rows, columns, tuple(segments), row_order, activation_bits, input_columns
        )
        layer.validate()
        return layer

    @property
    def stored_rows(self) -> int:
        """Rows that take bytes: all but those of 0 bits."""
        return sum(segment.rows for segment in self.segments)

    @property
    def stored_columns(self) -> int:
        """Columns that take bytes: all but the removed ones."""
        return self.columns if self.input_columns is None else len(self.input_columns)

    @property
    def nbytes(self) -> int:
        """All bytes of the layer: codes, scales, zeros, the row order and the input columns."""
        indices = (self.row_order, self.input_columns)
        return sum(segment.nbytes for segment in self.segments) + sum(
            index.nbytes for index in indices if index is not None
        )

    @property
    def bits_per_weight(self) -> float:
        """Mean width of all ``rows * columns`` weights; only codes are counted."""
        bits = sum(segment.bits * segment.rows for segment in self.segments)
        return bits * self.stored_columns / (self.rows * self.columns)

    def bits_per_row(self) -> torch.Tensor:
        """``int32 [rows]``: the width of each canonical row."""
        bits = torch.zeros(self.rows, dtype=torch.int32, device=self.row_order.device)
        start = 0
        for segment in self.segments:
            bits[self.row_order[start : start + segment.rows].long()] = segment.bits
            start += segment.rows
        return bits

    def validate(self) -> None:
        """Check shapes, dtypes, both index lists and the finiteness of every value.

        Raises:
            CheckpointError: Something is wrong; the message names the layer and the part.
        """
        self._validate_spec()
        self._validate_input_columns()
        for segment in self.segments:
            segment.validate(self.name, self.stored_columns)
        self._validate_row_order()

    def _validate_spec(self) -> None:
        widths = [segment.bits for segment in self.segments]
        rows = [segment.rows for segment in self.segments]
        kinds = {segment.group_columns for segment in self.segments if segment.bits != 16}
        problem = None
        if widths != [bits for bits in STORED_WIDTHS if bits in widths]:
            problem = f"segments of {widths} bits: they must be of {STORED_WIDTHS}, sorted"
        elif self.stored_rows > self.rows or not all(rows):
            problem = f"segments of {rows} rows do not fit a layer of {self.rows} rows"
        elif len(kinds) > 1:
            problem = "some scales are of whole rows and some of column groups"
        elif self.activation_bits not in ACTIVATION_BITS:
            problem = f"activations of {self.activation_bits} bits: use one of {ACTIVATION_BITS}"
        if problem is not None:
            raise layer_error(self.name, CheckpointFault.LAYER_SPEC, problem)

    def _validate_input_columns(self) -> None:
        index = self.input_columns
        if index is None:
            return
        expect_tensor(self.name, "input_columns", index, torch.int32, (len(index),))
        problem = None
        if not 1 <= len(index) < self.columns:
            problem = f"keeps {len(index)} of {self.columns}: at least one, and not all"
        elif bool((index.diff() <= 0).any()):
            problem = "does not ascend"
        elif int(index[0]) < 0 or int(index[-1]) >= self.columns:
            problem = f"points outside the {self.columns} columns"
        if problem is not None:
            raise layer_error(self.name, CheckpointFault.INPUT_COLUMNS, f"input_columns {problem}")

    def _validate_row_order(self) -> None:
        expect_tensor(self.name, "row_order", self.row_order, torch.int32, (self.stored_rows,))
        order = self.row_order.long()
        if order.numel() == 0:
            return
        problem = None
        ascending = order.sort().values
        twice = ascending[1:][ascending.diff() == 0]
        parts = torch.split(order, [segment.rows for segment in self.segments])
        if int(ascending[0]) < 0 or int(ascending[-1]) >= self.rows:
            problem = f"points outside the {self.rows} rows"
        elif twice.numel():
            problem = f"names row {int(twice[0])} twice"
        elif any(bool((part.diff() <= 0).any()) for part in parts):
            problem = "does not ascend within a segment"
        if problem is not None:
            raise layer_error(self.name, CheckpointFault.ROW_ORDER, f"row_order {problem}")


def _as_bfloat16(name: str, weight: torch.Tensor) -> torch.Tensor:
    rounded = weight.to(torch.bfloat16)
    if not torch.equal(rounded.to(weight.dtype), weight):
        raise ValueError(f"{name}: a 16-bit row holds values that bfloat16 cannot hold")
    return rounded
