"""The CPU kernel: dequantize a chunk of rows into a reused buffer, multiply, go on.

The packed weight stays packed; beside it there is one workspace a thread, whatever the number of
layers. A chunk takes rows of several widths together, so that a layer of mixed widths needs no
more matrix products than a uniform one.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS, padded_columns, unpack_into
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.workspace import take

CHUNK_ROWS = 256
"""Rows dequantized together, at least; narrow layers take more, up to `CHUNK_WEIGHTS`."""

CHUNK_WEIGHTS = CHUNK_ROWS * 4096
"""Weights dequantized together, unless `CHUNK_ROWS` rows are more than that."""


@torch.no_grad()
def linear_cpu_chunked(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` (see :data:`qvla_ros.kernels.operand.Kernel`).

    Computes in bfloat16 if ``x`` is bfloat16, and in float32 otherwise; never in float16.
    """
    dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    bias = None if operand.bias is None else operand.bias.to(dtype)
    packed = operand.packed
    x = operand.stored_inputs(x)
    if packed.rows <= rows_per_chunk(packed.stored_columns):
        y = linear(x.to(dtype), _whole_weight(operand, dtype), bias)
    else:
        y = _linear_by_chunks(x.to(dtype), operand, bias)
    return y.to(x.dtype)


def rows_per_chunk(columns: int) -> int:
    """Rows that are unpacked together."""
    return max(CHUNK_ROWS, CHUNK_WEIGHTS // padded_columns(columns))


def _whole_weight(operand: LinearOperand, dtype: torch.dtype) -> torch.Tensor:
    """A small layer's weight in canonical order: cheaper to sort its rows than the outputs."""
    packed = operand.packed
    stored = packed.stored_rows
    if stored == 0:
        return take("weight", (packed.rows, packed.stored_columns), dtype).zero_()
    weight = _chunk_weight(packed, 0, stored, dtype, packed.rows)
    weight[stored:] = 0
    if operand.in_order:
        return weight
    ordered = take("ordered", (packed.rows, packed.stored_columns), dtype)
    return torch.index_select(weight, 0, operand.gather, out=ordered)


def _linear_by_chunks(
    x: torch.Tensor, operand: LinearOperand, bias: torch.Tensor | None
) -> torch.Tensor:
    """Columns of the product in stored order, 0-bit rows last, then gathered."""
    packed = operand.packed
    stored = packed.stored_rows
    if bias is not None:
        bias = bias[operand.order]
    y = x.new_empty(x.shape[0], packed.rows)
    step = rows_per_chunk(packed.stored_columns)
    for start in range(0, stored, step):
        stop = min(start + step, stored)
        weight = _chunk_weight(packed, start, stop, x.dtype, stop - start)
        y[:, start:stop] = linear(x, weight, None if bias is None else bias[start:stop])
    y[:, stored:] = 0 if bias is None else bias[stored:]
    return operand.to_canonical_order(y)


def _chunk_weight(
    packed: PackedLinear, start: int, stop: int, dtype: torch.dtype, capacity: int
) -> torch.Tensor:
    """Stored rows ``start..stop`` dequantized, ``[capacity, columns]``; the rest is undefined."""
    rows = take("weight", (capacity, packed.stored_columns), dtype)
    for segment, first, last, at in _pieces(packed, start, stop):
        if segment.bits == 16 and dtype == segment.codes.dtype and last - first == capacity:
            return segment.codes[first:last]  # nothing to dequantize: not even a copy
        _dequantize_into(rows[at : at + last - first], segment, first, last)
    return rows


def _pieces(
    packed: PackedLinear, start: int, stop: int
) -> Iterator[tuple[PackedSegment, int, int, int]]:
    """Segments that meet stored rows ``start..stop``: rows of the segment, row of the chunk."""
    offset = 0
    for segment in packed.segments:
        first = max(start - offset, 0)
        last = min(stop - offset, segment.rows)
        if first < last:
            yield segment, first, last, offset + first - start
        offset += segment.rows


def _dequantize_into(target: torch.Tensor, segment: PackedSegment, first: int, last: int) -> None:
    """Bit for bit what `reference.dequantize` gives for these rows."""
    codes = segment.codes[first:last]
    if segment.scale is None or segment.zero is None:  # 16 bits: the weight itself
        target.copy_(codes)
        return
    rows, columns = target.shape
    shape = (rows, padded_columns(columns))
    q = codes if segment.bits == 8 else take("codes", shape, torch.uint8)
    if segment.bits != 8:
        unpack_into(codes, segment.bits, q)
    values = take("values", shape, torch.float32)
    values.copy_(q)
    groups = values.view(rows, -1, BLOCK_COLUMNS if segment.group_columns else shape[1])
    groups.sub_(segment.zero[first:last].float().view(rows, -1, 1))
    groups.mul_(segment.scale[first:last].float().view(rows, -1, 1))
    target.copy_(values[:, :columns])
