"""Where pruned rows end: a 0-bit row removes the matching input column of the layer behind it.

A pruned row puts out its bias, the same for every token. Whatever lies between it and the next
weight matrix (GELU, the product of gate and up, attention, whose weights sum to one) turns that
into another constant, so the column that reads it adds a constant vector: it goes into the bias
(``reconstruction.py``) and the column is not stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.vision_transformer import Block


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """Which rows reach which input columns of a later layer, and through what.

    Attributes:
        producers: Names of the layers whose rows meet; more than one for a product only.
        rows: ``int64 [columns of the consumer]``: the row of each producer that feeds a column.
        consumer: Name of the layer that reads them.
        through: ``"identity"`` (also attention), ``"gelu"``, or ``"product"``: zero as soon as
            one of the producers' rows is zero.
    """

    producers: tuple[str, ...]
    rows: Tensor
    consumer: str
    through: Literal["identity", "gelu", "product"]


def feeds(network: VlaNetwork) -> list[Feed]:
    """All feeds of the network, in execution order."""
    found = []
    for name, module in network.named_modules():
        if isinstance(module, Block):
            width, hidden = module.mlp.fc1.in_features, module.mlp.fc1.out_features
            values = torch.arange(2 * width, 3 * width)
            found.append(Feed((f"{name}.attn.qkv",), values, f"{name}.attn.proj", "identity"))
            found.append(
                Feed((f"{name}.mlp.fc1",), torch.arange(hidden), f"{name}.mlp.fc2", "gelu")
            )
    config = network.llama.config
    heads, size = config.num_attention_heads, config.head_dim
    shared = heads // config.num_key_value_heads  # query heads that read one value head
    columns = torch.arange(heads * size)
    values = columns // size // shared * size + columns % size
    for index, layer in enumerate(network.llama.layers):
        name = f"language_model.model.layers.{index}"
        attention = Feed(
            (f"{name}.self_attn.v_proj",), values, f"{name}.self_attn.o_proj", "identity"
        )
        found.append(attention)
        if layer.mlp.gate_proj.bias is None and layer.mlp.up_proj.bias is None:
            gated = (f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
            hidden = layer.mlp.gate_proj.out_features
            found.append(Feed(gated, torch.arange(hidden), f"{name}.mlp.down_proj", "product"))
    return found


def removable(
    row_bits: Mapping[str, Tensor], feeds: Sequence[Feed], block: int = BLOCK_COLUMNS
) -> dict[str, Tensor]:
    """The input columns that stay, for every layer that loses some.

    Rows are stored in whole blocks of columns, so a layer loses its dead columns only where that
    saves a block; and it keeps at least one column, so that it can be stored.

    Args:
        row_bits: Layer name to ``uint8 [rows]``.
        feeds: Of the network.
        block: Columns that are stored together.

    Returns:
        Layer name to ``int32 [kept]``, ascending.
    """
    kept = {}
    for feed in feeds:
        dead = torch.stack([row_bits[name][feed.rows] == 0 for name in feed.producers]).any(0)
        if dead.all():
            dead[0] = False
        stay = torch.nonzero(~dead).flatten().to(torch.int32)
        if -(-len(stay) // block) < -(-len(dead) // block):
            kept[feed.consumer] = stay
    return kept


def without_partners(row_bits: Mapping[str, Tensor], feeds: Sequence[Feed]) -> dict[str, Tensor]:
    """Row widths in which a row whose partner in a product is pruned is pruned as well."""
    bits = {name: widths.clone() for name, widths in row_bits.items()}
    for feed in feeds:
        if feed.through == "product":
            dead = torch.stack([bits[name] == 0 for name in feed.producers]).any(0)
            for name in feed.producers:
                bits[name][dead] = 0
    return bits
