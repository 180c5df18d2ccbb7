"""The CPU kernel of 8-bit activations: integer products of codes and rounded inputs.

As in :mod:`qvla_ros.kernels.cpu` the weight stays packed, and a chunk of rows is unpacked into a
reused buffer; here it stays integers, so neither a scale nor a zero is applied to it:

    y = sx · scale · (Σ qx·q - zero · Σ qx)
"""

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import padded_columns, unpack_into
from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.kernels.cpu import rows_per_chunk
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.reference import SMALLEST_ACTIVATION_SCALE
from qvla_ros.kernels.workspace import take

_SIGN = 128  # 8-bit codes are shifted by it to fit signed bytes; the zero is shifted too


@torch.no_grad()
def linear_cpu_int8(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` with ``x`` rounded to 8 bits (see `operand.Kernel`).

    Rows of 16 bits multiply ``x`` itself: in bfloat16 if it is that, and in float32 otherwise.
    """
    packed = operand.packed
    y = torch.zeros(x.shape[0], packed.rows)
    if x.shape[0] and packed.stored_rows:
        inputs = operand.stored_inputs(x)
        rounded = _RoundedInput(inputs)
        start = 0
        for segment in packed.segments:
            target = y[:, start : start + segment.rows]
            if segment.bits == 16:
                dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
                target.copy_(linear(inputs.to(dtype), segment.codes.to(dtype)))
            else:
                _multiply(rounded, segment, target)
            start += segment.rows
    y = operand.to_canonical_order(y)
    if operand.bias is not None:
        y += operand.bias
    return y.to(x.dtype)


class _RoundedInput:
    """``x [batch, columns]`` as ``codes · scale``, and the sums of the codes.

    Attributes:
        codes: ``int8 [batch, padded columns]``, 0 in the padding.
        scale: ``float32 [batch, 1]``.
    """

    def __init__(self, x: torch.Tensor) -> None:
        batch, columns = x.shape
        x = x.float()
        largest = torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True)
        self.scale = (largest / 127).clamp_min_(SMALLEST_ACTIVATION_SCALE)
        self.codes = take("input codes", (batch, padded_columns(columns)), torch.int8)
        self.codes[:, columns:] = 0
        self.codes[:, :columns] = (x / self.scale).round_()

    def group_sums(self, width: int) -> torch.Tensor:
        """``float32 [batch, groups]``: sums over ``width`` columns, exact."""
        return self.codes.view(len(self.codes), -1, width).sum(2, dtype=torch.int32).float()


def _multiply(x: _RoundedInput, segment: PackedSegment, target: torch.Tensor) -> None:
    """Add the product to ``float32 [batch, rows]``, chunk by chunk."""
    if segment.scale is None or segment.zero is None:
        raise ValueError("a segment without a grid has no integers")
    columns = x.codes.shape[1]
    width = segment.group_columns or columns
    sums = x.group_sums(width)
    for rows in torch.arange(segment.rows).split(rows_per_chunk(columns)):
        first, last = int(rows[0]), int(rows[-1]) + 1
        codes = _signed_codes(segment, first, last, columns)
        scale = segment.scale[first:last].view(last - first, -1).float()
        zero = segment.zero[first:last].view(last - first, -1).float()
        if segment.bits == 8:
            zero -= _SIGN
        part = target[:, first:last]
        for group in range(columns // width):
            of_group = slice(group * width, (group + 1) * width)
            product = torch._int_mm(x.codes[:, of_group], codes[:, of_group].t()).float()
            product.addr_(sums[:, group], zero[:, group], alpha=-1)
            part.addcmul_(product, scale[:, group])
        part *= x.scale


def _signed_codes(segment: PackedSegment, first: int, last: int, columns: int) -> torch.Tensor:
    """``int8 [rows, columns]``."""
    codes = take("codes", (last - first, columns), torch.uint8)
    unpack_into(segment.codes[first:last], segment.bits, codes)
    if segment.bits == 8:
        codes ^= _SIGN
    return codes.view(torch.int8)
