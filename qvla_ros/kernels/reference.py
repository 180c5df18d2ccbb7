"""The oracle: dequantize everything in float32, then multiply in float32."""

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import unpack_codes
from qvla_ros.checkpoint.packed_linear import PackedLinear, PackedSegment
from qvla_ros.kernels.operand import LinearOperand


def dequantize(packed: PackedLinear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that the codes stand for: ``(q - zero) * scale`` in float32, then rounded.

    Returns:
        ``[rows, columns]`` in canonical order; rows of 0 bits are zeros.
    """
    weight = torch.zeros(
        packed.rows, packed.columns, dtype=torch.float32, device=packed.row_order.device
    )
    start = 0
    for segment in packed.segments:
        rows = packed.row_order[start : start + segment.rows].long()
        weight[rows] = _dequantize_segment(segment, packed.columns)
        start += segment.rows
    return weight.to(dtype)


def matmul_reference(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """``x · Wᵀ`` in float32: ``[..., columns]`` to ``float32 [..., rows]``."""
    return linear(x.float(), dequantize(packed))


def linear_reference(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """The oracle as a kernel (see :data:`qvla_ros.kernels.operand.Kernel`)."""
    y = matmul_reference(x, operand.packed)
    if operand.bias is not None:
        y += operand.bias.float()
    return y.to(x.dtype)


def _dequantize_segment(segment: PackedSegment, columns: int) -> torch.Tensor:
    if segment.scale is None or segment.zero is None:  # 16 bits: the weight itself
        return segment.codes.float()
    q = unpack_codes(segment.codes, segment.bits, columns).float()
    return (q - segment.zero.float()[:, None]) * segment.scale.float()[:, None]
