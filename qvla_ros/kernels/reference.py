"""The oracle: dequantize everything in float32, then multiply in float32."""

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS, unpack_codes
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.kernels.operand import LinearOperand

SMALLEST_ACTIVATION_SCALE = torch.finfo(torch.float32).tiny
"""Scale of a row of zeros in integer arithmetic, so that nothing is divided by zero."""


def dequantize(packed: PackedLinear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that the codes stand for: ``(q - zero) * scale`` in float32, then rounded.

    Returns:
        ``[rows, columns]`` in canonical order; rows of 0 bits and removed columns are zeros.
    """
    device = packed.row_order.device
    stored = torch.zeros(packed.rows, packed.stored_columns, device=device)
    start = 0
    for segment in packed.segments:
        rows = packed.row_order[start : start + segment.rows].long()
        stored[rows] = _dequantize_segment(segment, packed.stored_columns)
        start += segment.rows
    if packed.input_columns is None:
        return stored.to(dtype)
    weight = torch.zeros(packed.rows, packed.columns, device=device)
    weight[:, packed.input_columns.long()] = stored
    return weight.to(dtype)


def matmul_reference(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """``x · Wᵀ``: ``[..., columns]`` to ``float32 [..., rows]``.

    In float32 with 16 activation bits; with 8 the integer sums are exact.
    """
    if packed.activation_bits == 8:
        return _matmul_of_integers(x.float(), packed)
    return linear(x.float(), dequantize(packed))


def linear_reference(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """The oracle as a kernel (see :data:`qvla_ros.kernels.operand.Kernel`)."""
    y = matmul_reference(x, operand.packed)
    if operand.bias is not None:
        y += operand.bias.float()
    return y.to(x.dtype)


def _matmul_of_integers(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """Σ over groups of ``sx · scale · (Σ qx·q - zero · Σ qx)``; 16-bit rows multiply ``x``."""
    if packed.input_columns is not None:
        x = x[..., packed.input_columns.long()]
    y = x.new_zeros(*x.shape[:-1], packed.rows)
    sx = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(SMALLEST_ACTIVATION_SCALE)
    qx = (x / sx).round().double()  # float64 holds the integer sums exactly
    start = 0
    for segment in packed.segments:
        rows = packed.row_order[start : start + segment.rows].long()
        start += segment.rows
        if segment.scale is None or segment.zero is None:
            y[..., rows] = linear(x, segment.codes.float())
            continue
        q = unpack_codes(segment.codes, segment.bits, packed.stored_columns).double()
        total = torch.zeros(*x.shape[:-1], segment.rows, dtype=torch.float64, device=x.device)
        width = segment.group_columns or packed.stored_columns
        scales, zeros = (grid.view(segment.rows, -1) for grid in (segment.scale, segment.zero))
        for group, (part, codes) in enumerate(
            zip(qx.split(width, -1), q.split(width, -1), strict=True)
        ):
            zero = zeros[:, group].double()
            total += (linear(part, codes) - part.sum(-1, keepdim=True) * zero) * scales[:, group]
        y[..., rows] = (total * sx).float()
    return y


def _dequantize_segment(segment: PackedSegment, columns: int) -> torch.Tensor:
    if segment.scale is None or segment.zero is None:  # 16 bits: the weight itself
        return segment.codes.float()
    q = unpack_codes(segment.codes, segment.bits, columns).float()
    scale, zero = segment.scale.float(), segment.zero.float()
    return (q - _spread(zero, columns)) * _spread(scale, columns)


def _spread(grid: torch.Tensor, columns: int) -> torch.Tensor:
    """A scale or zero for every weight: ``[rows]`` or ``[rows, groups]`` to ``[rows, 1 or columns]``."""
    if grid.ndim == 1:
        return grid[:, None]
    return grid.repeat_interleave(BLOCK_COLUMNS, dim=1)[:, :columns]
