"""Launch the Triton kernels of the steps of a block (see `fused_ops`)."""

import torch

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS, padded_columns
from qvla_ros.kernels.fused_ops import (
    Activation,
    Branch,
    FusedLinear,
    FusedOps,
    Heads,
    Norm,
    Tokens,
)
from qvla_ros.kernels.reference import SMALLEST_ACTIVATION_SCALE
from qvla_ros.kernels.triton_multiply import launch

_FUNCTIONS = {"identity": 0, "gelu": 1, "swiglu": 2}
HEADS = 16
"""Attention heads of a program."""


def warps(lanes: int) -> int:
    """Warps of a program that has this many columns of a token in registers."""
    return min(16, max(1, lanes // 512))


def multiply(tokens: Tokens, layer: FusedLinear) -> torch.Tensor:
    """See `FusedOps`; one launch for each kind of layer."""
    y = tokens.values.new_empty(len(tokens.values), layer.stored_rows)
    first = 0
    for operand in layer.operands:
        rows = operand.packed.stored_rows
        if rows and len(y):
            launch(tokens, y[:, first : first + rows], operand)
        first += rows
    return y


def activate(y: torch.Tensor, activation: Activation) -> Tokens:
    """See `FusedOps`."""
    from qvla_ros.kernels.triton_fused_kernels import activate_tokens

    first, second = activation.first, activation.second
    columns = len(first.source)
    tokens = empty_tokens(y, columns, activation.rounds)
    lanes = lanes_of(columns)
    activate_tokens[(len(y),)](
        y, first.source, _or(first.bias, y), second.source, _or(second.bias, y),
        *_pointers(tokens), columns, y.stride(0), SMALLEST_ACTIVATION_SCALE,
        FUNCTION=_FUNCTIONS[activation.function], BIAS=first.bias is not None,
        ROUND=activation.rounds, LANES=lanes, num_warps=warps(lanes),
    )  # fmt: skip
    return tokens


def add_norm(
    residual: torch.Tensor, y: torch.Tensor, branch: Branch, norm: Norm
) -> tuple[torch.Tensor, Tokens]:
    """See `FusedOps`."""
    from qvla_ros.kernels.triton_fused_kernels import add_norm_tokens

    columns = residual.shape[1]
    total = torch.empty_like(residual)
    tokens = empty_tokens(residual, columns, norm.rounds)
    bias, factor = branch.gather.bias, branch.factor
    lanes = lanes_of(columns)
    add_norm_tokens[(len(residual),)](
        residual, y, branch.gather.source, _or(bias, y), _or(factor, y), norm.weight,
        _or(norm.bias, y), total, *_pointers(tokens),
        columns, y.stride(0), 1 / columns, norm.eps, SMALLEST_ACTIVATION_SCALE,
        BIAS=bias is not None, FACTOR=factor is not None, CENTRED=norm.bias is not None,
        ROUND=norm.rounds, LANES=lanes, num_warps=warps(lanes),
    )  # fmt: skip
    return total, tokens


def rotate(
    y: torch.Tensor, heads: Heads, cosines: torch.Tensor, sines: torch.Tensor
) -> torch.Tensor:
    """See `FusedOps`."""
    from qvla_ros.kernels.triton_fused_kernels import rotate_heads

    out = y.new_empty(len(y), heads.count, heads.size)
    bias = heads.gather.bias
    lanes = _power_of_two(heads.size)
    rotate_heads[(len(y), -(-heads.count // HEADS))](
        y, heads.gather.source, _or(bias, y), cosines, sines, out,
        y.stride(0), len(cosines), heads.count, heads.rotated, heads.size,
        BIAS=bias is not None, HEADS=HEADS, LANES=lanes, num_warps=warps(HEADS * lanes),
    )  # fmt: skip
    return out


def empty_tokens(like: torch.Tensor, columns: int, rounds: bool) -> Tokens:
    """Memory for tokens, of the dtype and number of ``like``."""
    count = len(like)
    values = like.new_empty(count, columns)
    if not rounds:
        return Tokens(values)
    return Tokens(
        values,
        torch.empty_like(values, dtype=torch.int8),
        like.new_empty(count, dtype=torch.float32),
        like.new_empty(count, 1 + padded_columns(columns) // BLOCK_COLUMNS, dtype=torch.float32),
    )


def _pointers(tokens: Tokens) -> tuple[torch.Tensor, ...]:
    values = tokens.values
    return (
        values, _or(tokens.rounded, values), _or(tokens.scale, values), _or(tokens.sums, values)
    )  # fmt: skip


def _or(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """A pointer that is not read if the tensor is absent."""
    return stand_in if tensor is None else tensor


def lanes_of(columns: int) -> int:
    """Columns that a program has in registers: those of a token, up to a power of two."""
    return max(BLOCK_COLUMNS, _power_of_two(columns))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


TRITON = FusedOps("Triton", multiply, activate, add_norm, rotate)
"""All of them."""
