"""The steps of a block in PyTorch: the oracle of the Triton kernels, in float32 inside."""

import torch
import torch.nn.functional as F

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS, padded_columns
from qvla_ros.kernels.fused_ops import (
    NOTHING,
    Activation,
    Branch,
    FusedLinear,
    FusedOps,
    Gather,
    Heads,
    Norm,
    Tokens,
)
from qvla_ros.kernels.reference import SMALLEST_ACTIVATION_SCALE, matmul_reference


def multiply(tokens: Tokens, layer: FusedLinear) -> torch.Tensor:
    """The product in stored order; layers of integers round the values themselves."""
    x = tokens.values[:, : layer.operands[0].packed.stored_columns]
    if layer.input_columns is not None:  # the layer's own reference takes all columns
        whole = x.new_zeros(len(x), layer.operands[0].packed.columns)
        whole[:, layer.input_columns.long()] = x
        x = whole
    parts = [
        matmul_reference(x, operand.packed)[:, operand.packed.row_order.long()]
        for operand in layer.operands
    ]
    return torch.cat(parts, 1).to(x.dtype)


def activate(y: torch.Tensor, activation: Activation) -> Tokens:
    """See `FusedOps`."""
    values = _gathered(y, activation.first)
    if activation.function == "gelu":
        values = F.gelu(values)
    elif activation.function == "swiglu":
        values = F.silu(values) * _gathered(y, activation.second)
    return as_tokens(values.to(y.dtype), activation.rounds)


def add_norm(
    residual: torch.Tensor, y: torch.Tensor, branch: Branch, norm: Norm
) -> tuple[torch.Tensor, Tokens]:
    """See `FusedOps`."""
    added = _gathered(y, branch.gather)
    if branch.factor is not None:
        added = added * branch.factor.float()
    total = (residual.float() + added).to(residual.dtype)
    values = total.float()
    if norm.bias is not None:
        values = values - values.mean(1, keepdim=True)
    values = values * (values.square().mean(1, keepdim=True) + norm.eps).rsqrt()
    values = values * norm.weight.float()
    if norm.bias is not None:
        values = values + norm.bias.float()
    return total, as_tokens(values.to(residual.dtype), norm.rounds)


def rotate(
    y: torch.Tensor, heads: Heads, cosines: torch.Tensor, sines: torch.Tensor
) -> torch.Tensor:
    """See `FusedOps`."""
    values = _gathered(y, heads.gather).view(-1, len(cosines), heads.count, heads.size)
    turned = values[:, :, : heads.rotated]
    low, high = turned.chunk(2, -1)
    other = torch.cat([-high, low], -1)
    turned = turned * cosines.float()[:, None] + other * sines.float()[:, None]
    answer = torch.cat([turned, values[:, :, heads.rotated :]], 2)
    return answer.view(len(y), heads.count, heads.size).to(y.dtype)


def as_tokens(values: torch.Tensor, rounds: bool) -> Tokens:
    """``[tokens, columns]`` with its integers if they are wanted."""
    if not rounds:
        return Tokens(values)
    x = values.float()
    scale = (x.abs().amax(1) / 127).clamp_min(SMALLEST_ACTIVATION_SCALE)
    q = (x / scale[:, None]).round()
    blocks = F.pad(q, (0, padded_columns(q.shape[1]) - q.shape[1]))
    sums = blocks.view(len(q), -1, BLOCK_COLUMNS).sum(2)
    sums = torch.cat([sums.sum(1, keepdim=True), sums], 1)
    return Tokens(values, q.to(torch.int8), scale, sums)


def _gathered(y: torch.Tensor, gather: Gather) -> torch.Tensor:
    source = gather.source.long()
    values = y[:, source.clamp_min(0)].float()
    values[:, source == NOTHING] = 0
    return values if gather.bias is None else values + gather.bias.float()


REFERENCE = FusedOps("PyTorch", multiply, activate, add_norm, rotate)
"""All of them."""
