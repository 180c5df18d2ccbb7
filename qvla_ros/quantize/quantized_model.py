"""What quantization answers, whatever the method: codes and grids of every layer.

The codes are the artefact. The packed checkpoint and the fake-quantized network are both derived
from them, so what is evaluated is what is deployed.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import column_groups
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.rounding import Grid, values_of
from qvla_ros.quantize.widths import GRID_WIDTHS

GROUP_COLUMNS = BLOCK_COLUMNS
"""Columns that share a scale, in layers that have scales of groups."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLayer:
    """One weight matrix on its grids; ``stored`` columns are those of ``input_columns``.

    Attributes:
        layer: Name and full shape.
        row_bits: ``uint8 [rows]``.
        codes: ``uint8 [rows, stored]``; read for the rows that have a grid.
        grid: Of each row, or of each of its groups of ``GROUP_COLUMNS``; read for the same rows.
        weight: ``bfloat16 [rows, stored]``; read for the rows of 16 bits.
        activation_bits: 16, or 8: the inputs are rounded to int8, token by token.
        input_columns: ``int32 [stored]`` or ``None``: the columns that are kept.
    """

    layer: LinearLayer
    row_bits: Tensor
    codes: Tensor
    grid: Grid
    weight: Tensor
    activation_bits: int = 16
    input_columns: Tensor | None = None

    def stored_values(self) -> Tensor:
        """The weight over the stored columns, float32 ``[rows, stored]``."""
        groups = GROUP_COLUMNS if self.grid.scale.ndim == 2 else None
        values = values_of(self.codes, self.grid, groups)
        values[self.row_bits == 0] = 0.0
        kept = self.row_bits == 16
        values[kept] = self.weight[kept].float()
        return values

    def dequantize(self) -> Tensor:
        """The weight that the packed layer stands for, float32 ``[rows, columns]``."""
        values = self.stored_values()
        if self.input_columns is None:
            return values
        full = torch.zeros(self.layer.rows, self.layer.columns)
        full[:, self.input_columns.long()] = values
        return full

    def pack(self) -> PackedLinear:
        """The layer as it is stored."""
        return PackedLinear.assemble(
            name=self.layer.name,
            columns=self.layer.columns,
            row_bits=self.row_bits,
            codes=self.codes,
            scale=self.grid.scale,
            zero=self.grid.zero,
            weight=self.weight,
            activation_bits=self.activation_bits,
            input_columns=self.input_columns,
        )


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedModel:
    """All layers, and the float parameters that quantization changed.

    Attributes:
        layers: Layer name to its codes, in execution order.
        overrides: Parameter name to its new value (biases, norm weights).
    """

    layers: dict[str, QuantizedLayer]
    overrides: dict[str, Tensor] = field(default_factory=dict)

    @property
    def average_bits_per_weight(self) -> float:
        """Mean width over all weights; those of removed columns have no bits."""
        bits = sum(
            int(one.row_bits.sum(dtype=torch.int64)) * one.codes.shape[1]
            for one in self.layers.values()
        )
        return bits / sum(one.layer.weights for one in self.layers.values())


class LayerCodes:
    """Collects rows of several widths into one ``QuantizedLayer``."""

    def __init__(
        self, layer: LinearLayer, row_bits: Tensor, weight: Tensor, grouped: bool = False
    ) -> None:
        """Begin with ``weight`` floating ``[rows, stored]``; grids follow, width by width."""
        rows, stored = weight.shape
        shape = (rows, column_groups(stored)) if grouped else (rows,)
        self._layer = layer
        self._row_bits = row_bits
        self._weight = weight
        self._codes = torch.zeros(rows, stored, dtype=torch.uint8)
        self._grid = Grid(
            torch.ones(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)
        )

    def rows_by_width(self) -> list[tuple[int, Tensor]]:
        """Each grid width that occurs, with the ``int64`` indices of its rows."""
        found = [(bits, torch.nonzero(self._row_bits == bits).flatten()) for bits in GRID_WIDTHS]
        return [(bits, index) for bits, index in found if len(index)]

    def put(self, index: Tensor, grid: Grid, codes: Tensor) -> None:
        """Set the rows ``index``."""
        self._grid.scale[index], self._grid.zero[index] = grid.scale, grid.zero
        self._codes[index] = codes

    def finished(
        self, activation_bits: int = 16, input_columns: Tensor | None = None
    ) -> QuantizedLayer:
        """The layer."""
        return QuantizedLayer(
            self._layer,
            self._row_bits,
            self._codes,
            self._grid,
            self._weight.to(torch.bfloat16),
            activation_bits,
            input_columns,
        )


def fake_quantized(network: VlaNetwork, quantized: QuantizedModel) -> VlaNetwork:
    """A copy of the float network that computes what the packed checkpoint computes."""
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, value in quantized.overrides.items():
            twin.get_parameter(name).copy_(value)
    for layer in quantized.layers.values():
        apply_layer(twin, layer, {})
    return twin


@torch.no_grad()
def apply_layer(twin: VlaNetwork, layer: QuantizedLayer, overrides: Mapping[str, Tensor]) -> None:
    """Put one quantized layer, and its bias if ``overrides`` has it, into a float network."""
    name = layer.layer.name
    twin.get_parameter(f"{name}.weight").copy_(layer.dequantize())
    bias = overrides.get(f"{name}.bias")
    if bias is not None:
        twin.get_parameter(f"{name}.bias").copy_(bias)
    if layer.activation_bits == 8:
        twin.get_submodule(name).register_forward_hook(partial(_with_int8_inputs, layer))


def rounded_activations(tokens: Tensor) -> Tensor:
    """Each token on its own symmetric grid of 8 bits: scale ``max |x| / 127``."""
    scale = (tokens.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (tokens / scale).round() * scale


def _with_int8_inputs(
    layer: QuantizedLayer, module: nn.Linear, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """The output as the integer kernel answers it: rows of 16 bits see the input itself."""
    tokens = inputs[0]
    if layer.input_columns is not None:
        kept = torch.zeros(layer.layer.columns, dtype=torch.bool)
        kept[layer.input_columns.long()] = True
        tokens = tokens * kept
    rounded = F.linear(rounded_activations(tokens), module.weight, module.bias)
    return torch.where(layer.row_bits == 16, output, rounded)
