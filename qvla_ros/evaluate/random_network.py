"""Networks and layers of random weights, made where they are measured: nothing is read or copied."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.registry import empty_network, fill_network, replace_module
from qvla_ros.quantize.structure import feeds, removable, without_partners

MIXED: Mapping[int, float] = {16: 0.005, 8: 0.06, 4: 0.705, 3: 0.10, 2: 0.10, 0: 0.03}
"""Share of the rows of each width: 3.88 bits in the mean, as in a plan of that budget."""

UNIFORM_4: Mapping[int, float] = {4: 1.0}
"""What other libraries have."""

_SPREAD = 0.02  # standard deviation of a weight


@dataclass(frozen=True, slots=True)
class Recipe:
    """How random layers are packed.

    Attributes:
        shares: Share of the rows of each width.
        activation_bits: 16 or 8.
        groups: Whether every 128 columns have their own scale.
    """

    shares: Mapping[int, float]
    activation_bits: int = 16
    groups: bool = False


class RandomWeights:
    """A source of random weights on one device.

    Args:
        device: Where everything is made.
        seed: The same gives the same on the same kind of device.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def floats(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Weights of a float layer."""
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self._generator).mul_(
            _SPREAD
        )

    def row_bits(self, rows: int, shares: Mapping[int, float]) -> Tensor:
        """``uint8 [rows]``, shuffled."""
        edges = (torch.tensor(list(shares.values())).cumsum(0) * rows).round()
        widths = torch.tensor(list(shares), dtype=torch.uint8, device=self.device)
        index = torch.bucketize(torch.arange(rows), edges, right=True).clamp(max=len(shares) - 1)
        shuffled = torch.randperm(rows, device=self.device, generator=self._generator)
        return widths[index.to(self.device)][shuffled]

    def packed(
        self,
        name: str,
        columns: int,
        row_bits: Tensor,
        recipe: Recipe,
        input_columns: Tensor | None = None,
    ) -> PackedLinear:
        """A layer of random codes whose weights have the spread of the float ones."""
        kept = columns if input_columns is None else len(input_columns)
        rows = len(row_bits)
        levels = 2.0 ** row_bits.clamp(max=8).float()
        codes = torch.randint(
            0, 256, (rows, kept), dtype=torch.uint8, device=self.device, generator=self._generator
        )
        codes &= (levels - 1).to(torch.uint8)[:, None]
        groups = math.ceil(kept / BLOCK_COLUMNS) if recipe.groups else 1
        scale = (math.sqrt(12) * _SPREAD / levels)[:, None].repeat(1, groups).bfloat16()
        zero = ((levels - 1) / 2)[:, None].repeat(1, groups).bfloat16()
        return PackedLinear.assemble(
            name,
            columns,
            row_bits,
            codes,
            scale if recipe.groups else scale[:, 0],
            zero if recipe.groups else zero[:, 0],
            self.floats(1, kept).expand(rows, kept),
            activation_bits=recipe.activation_bits,
            input_columns=input_columns,
        )


def float_network(
    config: OpenVlaOftConfig, weights: RandomWeights, dtype: torch.dtype
) -> OpenVlaOft:
    """A network of random float weights."""
    network = cast(OpenVlaOft, empty_network(config))
    _fill(network, weights, dtype)
    return network


def packed_network(
    config: OpenVlaOftConfig, weights: RandomWeights, dtype: torch.dtype, recipe: Recipe
) -> OpenVlaOft:
    """A network of random packed weights; its 0-bit rows remove the columns behind them."""
    network = cast(OpenVlaOft, empty_network(config))
    layers = network.linear_layers()
    bits = {layer.name: weights.row_bits(layer.rows, recipe.shares).cpu() for layer in layers}
    links = feeds(network)
    bits = without_partners(bits, links)
    kept = removable(bits, links)
    for layer in layers:
        columns = kept.get(layer.name)
        packed = weights.packed(
            layer.name,
            layer.columns,
            bits[layer.name].to(weights.device),
            recipe,
            None if columns is None else columns.to(weights.device),
        )
        biased = network.get_submodule(layer.name).bias is not None
        bias = weights.floats(layer.rows, dtype=dtype) if biased else None
        replace_module(network, layer.name, QuantizedLinear(packed, bias))
    _fill(network, weights, dtype)
    return network


def _fill(network: OpenVlaOft, weights: RandomWeights, dtype: torch.dtype) -> None:
    norms = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    }
    tensors = {}
    for name, parameter in network.named_parameters():
        tensors[name] = weights.floats(*parameter.shape, dtype=dtype)
        if name in norms:
            tensors[name] += 1
    fill_network(network, tensors, "random weights")
