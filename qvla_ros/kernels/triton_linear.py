"""Launch the Triton kernels. They have been interpreted and compiled, but never run on a GPU."""

from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.bitpack import CODE_BITS
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.reference import SMALLEST_ACTIVATION_SCALE

BLOCK_ROWS = 128
"""Rows of a tile, of one width each."""

BLOCK_TOKENS = 64
"""Tokens of a tile."""

GROUP_BLOCK_TOKENS = 32
"""The same for integers with scales of groups, which need registers for a second sum."""

WARPS = 8
"""Warps of a program: with these sizes no register is spilt on sm_87, sm_90 and sm_110."""


@dataclass(frozen=True, slots=True)
class _TiledLayer:
    """A layer as the kernels take it.

    Attributes:
        codes: The weight of 16 bits and the codes of 8, 4, 3 and 2; a stand-in where none is.
        scale: ``bfloat16 [rows with codes * groups]``, all segments after each other.
        zero: Like the scale.
        tiles: ``int32 [tiles, 4]``, see `triton_kernels`.
        whole_rows: Rows of 16 bits.
        groups: Scales of a row.
    """

    codes: tuple[torch.Tensor, ...]
    scale: torch.Tensor
    zero: torch.Tensor
    tiles: torch.Tensor
    whole_rows: int
    groups: int


@torch.no_grad()
def linear_triton(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` in one launch for all widths (see `operand.Kernel`).

    The products of floats are of ``x``'s dtype, accumulated in float32.
    """
    packed = operand.packed
    layer = operand.prepared.get(linear_triton.__name__)
    if not isinstance(layer, _TiledLayer):
        layer = operand.prepared[linear_triton.__name__] = _tile(operand)
    y = x.new_zeros(x.shape[0], packed.rows)
    if len(x) and len(layer.tiles):
        inputs = operand.stored_inputs(x).contiguous()
        if packed.activation_bits == 8:
            _launch_integers(inputs, y, layer)
        else:
            _launch_floats(inputs, y, layer)
    y = operand.to_canonical_order(y)
    return y if operand.bias is None else y + operand.bias.to(y.dtype)


def _launch_floats(x: torch.Tensor, y: torch.Tensor, layer: _TiledLayer) -> None:
    from qvla_ros.kernels.triton_kernels import multiply_floats

    multiply_floats[_programs(x, layer, BLOCK_TOKENS)](
        x, y, *layer.codes, layer.scale, layer.zero, layer.tiles,
        *x.shape, y.shape[1], layer.whole_rows, layer.groups,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_TOKENS=BLOCK_TOKENS, num_warps=WARPS,
    )  # fmt: skip


def _launch_integers(x: torch.Tensor, y: torch.Tensor, layer: _TiledLayer) -> None:
    from qvla_ros.kernels.triton_kernels import multiply_integers, round_tokens

    tokens, columns = x.shape
    grouped = layer.groups > 1
    rounded = torch.empty_like(x, dtype=torch.int8)
    scale = x.new_empty(tokens, dtype=torch.float32)
    sums = x.new_empty(tokens, layer.groups, dtype=torch.float32)
    round_tokens[(tokens,)](
        x, rounded, scale, sums, columns, layer.groups, SMALLEST_ACTIVATION_SCALE, GROUPED=grouped
    )
    block = GROUP_BLOCK_TOKENS if grouped else BLOCK_TOKENS
    multiply_integers[_programs(x, layer, block)](
        x, rounded, scale, sums, y, *layer.codes, layer.scale, layer.zero, layer.tiles,
        *x.shape, y.shape[1], layer.whole_rows, layer.groups,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_TOKENS=block, GROUPED=grouped, num_warps=WARPS,
    )  # fmt: skip


def _programs(x: torch.Tensor, layer: _TiledLayer, block_tokens: int) -> tuple[int, int]:
    return len(layer.tiles), -(-len(x) // block_tokens)


def _tile(operand: LinearOperand) -> _TiledLayer:
    packed = operand.packed
    device = packed.row_order.device
    codes = {16: torch.empty(1, dtype=torch.bfloat16, device=device)}
    codes |= dict.fromkeys(CODE_BITS, torch.empty(1, dtype=torch.uint8, device=device))
    tiles, scales, zeros = [], [], []
    stored = whole_rows = 0
    groups = 1
    for segment in packed.segments:
        codes[segment.bits] = segment.codes
        for first in range(0, segment.rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, segment.rows - first)
            tiles.append((segment.bits, first, stored + first, rows))
        stored += segment.rows
        if segment.scale is None or segment.zero is None:
            whole_rows = segment.rows
            continue
        groups = segment.scale.numel() // segment.rows
        scales.append(segment.scale.flatten())
        zeros.append(segment.zero.flatten())
    nothing = torch.ones(1, dtype=torch.bfloat16, device=device)
    return _TiledLayer(
        codes=tuple(codes[bits] for bits in (16, *CODE_BITS)),
        scale=torch.cat(scales) if scales else nothing,
        zero=torch.cat(zeros) if zeros else nothing,
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 4),
        whole_rows=whole_rows,
        groups=groups,
    )
