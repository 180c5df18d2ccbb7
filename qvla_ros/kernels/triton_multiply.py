"""Launch the Triton kernels that multiply. The sizes of their tiles are here, and nowhere else."""

import os
from dataclasses import dataclass
from functools import cache

import torch

from qvla_ros.checkpoint.bitpack import CODE_BITS
from qvla_ros.kernels.fused_ops import Tokens
from qvla_ros.kernels.operand import LinearOperand


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes.

    Attributes:
        rows: Stored rows, all of one width.
        tokens: Rows of the input.
        warps: Warps of a program.
    """

    rows: int
    tokens: int
    warps: int


FEW_TOKENS = 16
"""Up to so many, the weight is read once, and small tiles keep more processors busy with that."""

_FEW = Tile(32, FEW_TOKENS, 2)
_MANY = Tile(128, 64, 8)
_MANY_ON_HOPPER = Tile(128, 128, 8)  # its products outrun the reads of inputs by smaller tiles
HOPPER = 9


def tile(major: int, tokens: int, integers_of_groups: bool) -> Tile:
    """The tile of a device; with these no register is spilt (``qvla bench gates``).

    Args:
        major: Of the compute capability.
        tokens: Rows of the input.
        integers_of_groups: 8-bit activations and scales of column groups, which need registers
            for a second sum.
    """
    if tokens <= FEW_TOKENS:
        return _FEW
    return _MANY_ON_HOPPER if major == HOPPER and not integers_of_groups else _MANY


@dataclass(frozen=True, slots=True)
class _TiledLayer:
    """A layer as the kernels take it.

    Attributes:
        codes: The weight of 16 bits and the codes of 8, 4, 3 and 2; a stand-in where none is.
        scale: ``bfloat16 [rows with codes * groups]``, all segments after each other.
        zero: Like the scale.
        tiles: By rows of a tile: ``int32 [tiles, 4]``, see `triton_kernels`.
        whole_rows: Rows of 16 bits.
        groups: Scales of a row.
    """

    codes: tuple[torch.Tensor, ...]
    scale: torch.Tensor
    zero: torch.Tensor
    tiles: dict[int, torch.Tensor]
    whole_rows: int
    groups: int


def launch(x: Tokens, y: torch.Tensor, operand: LinearOperand) -> None:
    """Write the product into ``y [tokens, stored rows]``, of which only rows are contiguous.

    Raises:
        ValueError: bfloat16 in Triton's interpreter, which multiplies it wrongly without a word.
    """
    if x.values.dtype == torch.bfloat16 and _is_interpreted(x.values.device):
        raise ValueError("Triton's interpreter cannot multiply bfloat16; use float16 or float32")
    from qvla_ros.kernels.triton_kernels import multiply_floats, multiply_integers

    layer = operand.prepared.get(__name__)
    if not isinstance(layer, _TiledLayer):
        layer = operand.prepared[__name__] = _tile(operand)
    tokens, width = x.values.shape
    columns = operand.packed.stored_columns
    integers = operand.packed.activation_bits == 8
    grouped = layer.groups > 1
    chosen = tile(_major(x.values.device), tokens, integers and grouped)
    tiles = layer.tiles[chosen.rows]
    grid = (len(tiles), -(-tokens // chosen.tokens))
    sizes = (tokens, width, columns, y.stride(0), layer.whole_rows, layer.groups)
    weights = (*layer.codes, layer.scale, layer.zero, tiles)
    if not integers:
        multiply_floats[grid](
            x.values, y, *weights, *sizes, GROUPED=grouped,
            BLOCK_ROWS=chosen.rows, BLOCK_TOKENS=chosen.tokens, num_warps=chosen.warps,
        )  # fmt: skip
        return
    multiply_integers[grid](
        x.values, x.rounded, x.scale, x.sums, y, *weights, *sizes, GROUPED=grouped,
        BLOCK_ROWS=chosen.rows, BLOCK_TOKENS=chosen.tokens, num_warps=chosen.warps,
    )  # fmt: skip


def _is_interpreted(device: torch.device) -> bool:
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _major(device: torch.device) -> int:
    """Of the compute capability; 0 in the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def _tile(operand: LinearOperand) -> _TiledLayer:
    packed = operand.packed
    device = packed.row_order.device
    codes = {16: torch.empty(1, dtype=torch.bfloat16, device=device)}
    codes |= dict.fromkeys(CODE_BITS, torch.empty(1, dtype=torch.uint8, device=device))
    scales, zeros = [], []
    whole_rows = 0
    groups = 1
    for segment in packed.segments:
        codes[segment.bits] = segment.codes
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
        tiles={rows: _tile_table(operand, rows) for rows in (_FEW.rows, _MANY.rows)},
        whole_rows=whole_rows,
        groups=groups,
    )


def _tile_table(operand: LinearOperand, tile_rows: int) -> torch.Tensor:
    table = []
    stored = 0
    for segment in operand.packed.segments:
        for first in range(0, segment.rows, tile_rows):
            rows = min(tile_rows, segment.rows - first)
            table.append((segment.bits, first, stored + first, rows))
        stored += segment.rows
    device = operand.packed.row_order.device
    return torch.tensor(table, dtype=torch.int32, device=device).view(-1, 4)
