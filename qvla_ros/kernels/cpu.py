"""The CPU kernel: dequantize a chunk of rows into a reused buffer, multiply, go on.

The packed weight stays packed; beside it there is one workspace a thread, whatever the number of
layers. A chunk takes rows of several widths together, so that a layer of mixed widths needs no
more matrix products than a uniform one.
"""

import math
import threading
from collections.abc import Iterator

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import padded_columns, unpack_into
from qvla_ros.checkpoint.packed_linear import PackedLinear, PackedSegment
from qvla_ros.kernels.operand import LinearOperand

CHUNK_ROWS = 256
"""Rows dequantized together, at least; narrow layers take more, up to `CHUNK_WEIGHTS`."""

CHUNK_WEIGHTS = CHUNK_ROWS * 4096
"""Weights dequantized together, unless `CHUNK_ROWS` rows are more than that."""


class _Workspace(threading.local):
    """Named scratch buffers of the calling thread; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor with old contents, valid until the name is taken again."""
        count = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < count * dtype.itemsize:
            # An inference tensor could not be written to outside of inference mode later.
            with torch.inference_mode(False):
                buffer = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
            self._buffers[name] = buffer
        return buffer[: count * dtype.itemsize].view(dtype).view(shape)

    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())


_workspace = _Workspace()


def workspace_bytes() -> int:
    """Bytes of scratch memory that the calling thread holds for this kernel."""
    return _workspace.nbytes()


@torch.no_grad()
def linear_cpu_chunked(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` (see :data:`qvla_ros.kernels.operand.Kernel`).

    Computes in bfloat16 if ``x`` is bfloat16, and in float32 otherwise; never in float16.
    """
    dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    bias = None if operand.bias is None else operand.bias.to(dtype)
    packed = operand.packed
    if packed.rows <= _rows_per_chunk(packed.columns):
        y = linear(x.to(dtype), _whole_weight(operand, dtype), bias)
    else:
        y = _linear_by_chunks(x.to(dtype), operand, bias)
    return y.to(x.dtype)


def _rows_per_chunk(columns: int) -> int:
    return max(CHUNK_ROWS, CHUNK_WEIGHTS // padded_columns(columns))


def _whole_weight(operand: LinearOperand, dtype: torch.dtype) -> torch.Tensor:
    """A small layer's weight in canonical order: cheaper to sort its rows than the outputs."""
    packed = operand.packed
    stored = packed.stored_rows
    if stored == 0:
        return _workspace.take("weight", (packed.rows, packed.columns), dtype).zero_()
    weight = _chunk_weight(packed, 0, stored, dtype, packed.rows)
    weight[stored:] = 0
    if operand.in_order:
        return weight
    ordered = _workspace.take("ordered", (packed.rows, packed.columns), dtype)
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
    step = _rows_per_chunk(packed.columns)
    for start in range(0, stored, step):
        stop = min(start + step, stored)
        weight = _chunk_weight(packed, start, stop, x.dtype, stop - start)
        y[:, start:stop] = linear(x, weight, None if bias is None else bias[start:stop])
    y[:, stored:] = 0 if bias is None else bias[stored:]
    if operand.in_order:
        return y
    return torch.gather(y, 1, operand.gather.long().expand(y.shape))


def _chunk_weight(
    packed: PackedLinear, start: int, stop: int, dtype: torch.dtype, capacity: int
) -> torch.Tensor:
    """Stored rows ``start..stop`` dequantized, ``[capacity, columns]``; the rest is undefined."""
    rows = _workspace.take("weight", (capacity, packed.columns), dtype)
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
    q = codes if segment.bits == 8 else _workspace.take("codes", shape, torch.uint8)
    if segment.bits != 8:
        unpack_into(codes, segment.bits, q)
    values = _workspace.take("values", shape, torch.float32)
    values.copy_(q)
    values.sub_(segment.zero[first:last].float()[:, None])
    values.mul_(segment.scale[first:last].float()[:, None])
    target.copy_(values[:, :columns])
