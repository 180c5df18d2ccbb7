"""Transformer blocks of a packed network as fused steps: four products, and what lies between.

The modules keep the weights; a block holds the same tensors in the form that the steps read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.fused_linear import fuse
from qvla_ros.kernels.fused_ops import (
    NOTHING,
    Activation,
    Branch,
    FusedLinear,
    FusedOps,
    Gather,
    Heads,
    Norm,
)
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.vision_transformer import Block

Positions = tuple[Tensor, Tensor]
"""Cosines and sines of the positions, each ``[length, head size]``."""


@dataclass(frozen=True, slots=True, eq=False)
class FusedBlock:
    """A pre-norm block, of a vision tower or of the Llama.

    Attributes:
        attention_norm: Before query, key and value.
        query_key_value: All three as one layer.
        heads: How their rows become heads; none is rotated in a tower.
        value_heads: Heads of the value, and of the key.
        mixed: What the attention answers to what ``project`` reads.
        project: The attention's last layer.
        attention_branch: How that reaches the residual stream.
        mlp_norm: Before the MLP.
        widen: Its first layer, or gate and up as one.
        hidden: What ``widen`` answers to what ``narrow`` reads.
        narrow: Its last layer.
        mlp_branch: How that reaches the residual stream.
    """

    attention_norm: Norm
    query_key_value: FusedLinear
    heads: Heads
    value_heads: int
    mixed: Activation
    project: FusedLinear
    attention_branch: Branch
    mlp_norm: Norm
    widen: FusedLinear
    hidden: Activation
    narrow: FusedLinear
    mlp_branch: Branch


def vision_block(block: Block) -> FusedBlock:
    """A block of a tower.

    Raises:
        ConfigurationError: A layer is not packed, or reads a part of a normalised token.
    """
    query_key_value, project = _fused(block.attn.qkv), _fused(block.attn.proj)
    widen, narrow = _fused(block.mlp.fc1), _fused(block.mlp.fc2)
    count, width = block.attn.heads, block.norm1.normalized_shape[0]
    gather = widen.gather.columns(narrow.input_columns).padded()
    return FusedBlock(
        attention_norm=_norm(block.norm1, block.norm1.eps, query_key_value),
        query_key_value=query_key_value,
        heads=Heads(query_key_value.gather, 3 * count, 0, width // count),
        value_heads=count,
        mixed=_plain(width, project),
        project=project,
        attention_branch=Branch(project.gather, getattr(block.ls1, "scale_factor", None)),
        mlp_norm=_norm(block.norm2, block.norm2.eps, widen),
        widen=widen,
        hidden=Activation("gelu", gather, gather, narrow.rounds_input),
        narrow=narrow,
        mlp_branch=Branch(narrow.gather, getattr(block.ls2, "scale_factor", None)),
    )


def llama_block(layer: LlamaDecoderLayer, config: LlamaConfig) -> FusedBlock:
    """A layer of the language model.

    Raises:
        ConfigurationError: As `vision_block`; or the activation is not SiLU.
    """
    if config.hidden_act != "silu":
        raise ConfigurationError(f"the activation {config.hidden_act!r} has no fused step")
    attention, mlp = layer.self_attn, layer.mlp
    query_key_value = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
    project, widen = _fused(attention.o_proj), _fused(mlp.gate_proj, mlp.up_proj)
    narrow = _fused(mlp.down_proj)
    queries, values = config.num_attention_heads, config.num_key_value_heads
    hidden = config.intermediate_size
    gate, up = (
        widen.gather.rows(first, first + hidden).columns(narrow.input_columns).padded()
        for first in (0, hidden)
    )
    return FusedBlock(
        attention_norm=_norm(layer.input_layernorm, config.rms_norm_eps, query_key_value),
        query_key_value=query_key_value,
        heads=Heads(
            query_key_value.gather, queries + 2 * values, queries + values, config.head_dim
        ),
        value_heads=values,
        mixed=_plain(queries * config.head_dim, project),
        project=project,
        attention_branch=Branch(project.gather),
        mlp_norm=_norm(layer.post_attention_layernorm, config.rms_norm_eps, widen),
        widen=widen,
        hidden=Activation("swiglu", gate, up, narrow.rounds_input),
        narrow=narrow,
        mlp_branch=Branch(narrow.gather),
    )


def run_blocks(
    ops: FusedOps, blocks: Sequence[FusedBlock], hidden: Tensor, positions: Positions | None
) -> Tensor:
    """Run blocks, every token seeing all others of its sample.

    Args:
        ops: Which steps.
        blocks: In order.
        hidden: ``[batch, length, width]``.
        positions: For blocks with rotated heads.

    Returns:
        The hidden state after the last block, of the same shape.
    """
    residual = hidden.reshape(-1, hidden.shape[-1])
    product = residual
    branch = Branch(Gather(_nothing(residual)))
    for block in blocks:
        residual, tokens = ops.add_norm(residual, product, branch, block.attention_norm)
        states = _heads(ops, ops.multiply(tokens, block.query_key_value), block, positions)
        mixed = _attention(states.unflatten(0, hidden.shape[:2]), block.value_heads)
        product = ops.multiply(ops.activate(mixed.flatten(0, 1), block.mixed), block.project)
        residual, tokens = ops.add_norm(residual, product, block.attention_branch, block.mlp_norm)
        product = ops.multiply(tokens, block.widen)
        product = ops.multiply(ops.activate(product, block.hidden), block.narrow)
        branch = block.mlp_branch
    return (residual + _added(ops, product, branch)).view(hidden.shape)


def _nothing(residual: Tensor) -> Tensor:
    return torch.full(residual.shape[1:], NOTHING, dtype=torch.int32, device=residual.device)


def _heads(
    ops: FusedOps, product: Tensor, block: FusedBlock, positions: Positions | None
) -> Tensor:
    """Query, key and value: ``[tokens, heads of all three, size]``."""
    heads = block.heads
    if not heads.rotated:
        plain = Activation("identity", heads.gather, heads.gather, rounds=False)
        return ops.activate(product, plain).values.unflatten(1, (heads.count, heads.size))
    if positions is None:
        raise ValueError("rotated heads need positions")
    return ops.rotate(product, heads, *positions)


def _attention(states: Tensor, value_heads: int) -> Tensor:
    """``[batch, length, heads of all three, size]`` to ``[batch, length, query heads * size]``."""
    queries = states.shape[2] - 2 * value_heads
    query, key, value = states.transpose(1, 2).split([queries, value_heads, value_heads], 1)
    if queries != value_heads:
        key, value = (t.repeat_interleave(queries // value_heads, 1) for t in (key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _added(ops: FusedOps, product: Tensor, branch: Branch) -> Tensor:
    plain = Activation("identity", branch.gather, branch.gather, rounds=False)
    values = ops.activate(product, plain).values
    return values if branch.factor is None else values * branch.factor


def _fused(*layers: nn.Module) -> FusedLinear:
    packed = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    if len(packed) != len(layers):
        raise ConfigurationError("a layer of a block is not packed")
    return fuse(packed)


def _norm(module: nn.Module, eps: float, reader: FusedLinear) -> Norm:
    if reader.input_columns is not None:
        name = reader.operands[0].packed.name
        raise ConfigurationError(f"{name!r} reads only a part of a normalised token")
    weight = cast(Tensor, module.weight)
    return Norm(weight, getattr(module, "bias", None), eps, reader.rounds_input)


def _plain(columns: int, reader: FusedLinear) -> Activation:
    """The columns that are kept, rounded if that is wanted."""
    gather = Gather.in_order(columns, reader.gather.source.device).columns(reader.input_columns)
    gather = gather.padded()
    return Activation("identity", gather, gather, reader.rounds_input)
