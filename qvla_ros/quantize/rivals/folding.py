"""Scales of input columns that cost nothing to run: folded into what stands before the layer.

Multiplying the columns of a weight by ``s`` and dividing its input by ``s`` changes nothing in
exact arithmetic, but a grid then treats columns of large inputs better. The division goes into
the norm before the layer, or into the rows of a layer that feeds it linearly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.vision_transformer import Block
from qvla_ros.quantize.structure import feeds


@dataclass(frozen=True, slots=True)
class ScalingGroup:
    """Layers that read one input, and what can take the inverse scale.

    Attributes:
        layers: Names of the layers that read it.
        norm: Name of the norm that makes the input, or
        feeder: name of the layer whose rows make it, with
        rows: the row behind each column, ``int64 [columns]``.
    """

    layers: tuple[str, ...]
    norm: str | None = None
    feeder: str | None = None
    rows: Tensor | None = None


def norm_groups(network: VlaNetwork) -> list[ScalingGroup]:
    """Every norm and the layers behind it, in execution order."""
    groups = []
    for name, module in network.named_modules():
        if isinstance(module, Block):
            groups.append(ScalingGroup((f"{name}.attn.qkv",), f"{name}.norm1"))
            groups.append(ScalingGroup((f"{name}.mlp.fc1",), f"{name}.norm2"))
    for index in range(len(network.llama.layers)):
        name = f"language_model.model.layers.{index}"
        attention = tuple(f"{name}.self_attn.{part}_proj" for part in "qkv")
        gated = (f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        groups.append(ScalingGroup(attention, f"{name}.input_layernorm"))
        groups.append(ScalingGroup(gated, f"{name}.post_attention_layernorm"))
    return groups


def feeder_groups(network: VlaNetwork) -> list[ScalingGroup]:
    """Every layer that another one feeds linearly: values through attention, up through gate.

    Values that several query heads share are left out: one row feeds several columns.
    """
    return [
        ScalingGroup((feed.consumer,), feeder=feed.producers[-1], rows=feed.rows)
        for feed in feeds(network)
        if feed.through != "gelu" and len(feed.rows.unique()) == len(feed.rows)
    ]


@torch.no_grad()
def fold(network: VlaNetwork, group: ScalingGroup, scale: Tensor) -> Tensor:
    """Multiply the columns of a group by ``scale`` and divide their input by it.

    Float parameters are stored in BF16, so the scale is nudged to the nearest that leaves the
    norm's weight a BF16 number.

    Args:
        network: Changed in place.
        group: Of that network.
        scale: float32 ``[columns]``, positive.

    Returns:
        The scale that was folded, ``[columns]``.
    """
    if group.norm is not None:
        scale = _divide_norm(network.get_submodule(group.norm), scale)
    elif group.feeder is not None and group.rows is not None:
        producer = network.get_submodule(group.feeder)
        producer.get_parameter("weight")[group.rows] /= scale[:, None]
        bias = getattr(producer, "bias", None)
        if isinstance(bias, Tensor):
            bias[group.rows] = (bias[group.rows] / scale).to(torch.bfloat16).float()
    for name in group.layers:
        network.get_submodule(name).get_parameter("weight").mul_(scale)
    return scale


def _divide_norm(norm: nn.Module, scale: Tensor) -> Tensor:
    weight = norm.get_parameter("weight")
    divided = (weight / scale).to(torch.bfloat16).float()
    scale = torch.where(divided == 0, scale, weight / divided)
    weight.copy_(divided)
    bias = getattr(norm, "bias", None)
    if isinstance(bias, Tensor):
        bias.copy_((bias / scale).to(torch.bfloat16).float())
    return scale


def changed_parameters(network: VlaNetwork, twin: VlaNetwork) -> dict[str, Tensor]:
    """Float parameters of ``twin`` that differ from the network's, without the layers' weights."""
    packed = {f"{layer.name}.weight" for layer in network.linear_layers()}
    before = dict(network.named_parameters())
    return {
        name: value.detach()
        for name, value in twin.named_parameters()
        if name not in packed and not torch.equal(value, before[name])
    }
