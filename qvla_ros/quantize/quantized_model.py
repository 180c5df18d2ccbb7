"""What quantization answers, whatever the method: codes and grids of every layer.

The codes are the artefact. The packed checkpoint and the fake-quantized network are both derived
from them, so what is evaluated is what is deployed.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS, unpack_codes
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment, column_groups
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.weight_source import FetchedLinear
from qvla_ros.quantize.linear_weight import put_weight
from qvla_ros.quantize.rounding import Grid, values_of
from qvla_ros.quantize.widths import GRID_WIDTHS

GROUP_COLUMNS = BLOCK_COLUMNS
"""Columns that share a scale, in layers that have scales of groups."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLayer:
    """One weight matrix on its grids, packed: memory holds what the file will hold.

    Attributes:
        layer: Name and full shape.
        packed: As it is stored.
    """

    layer: LinearLayer
    packed: PackedLinear

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``, removed columns included."""
        return self.layer.rows, self.layer.columns

    @property
    def row_bits(self) -> Tensor:
        """``uint8 [rows]``."""
        return self.packed.bits_per_row().to(torch.uint8)

    @property
    def codes(self) -> Tensor:
        """``uint8 [rows, stored]``; zeros in the rows that have no grid."""
        codes = torch.zeros(self.layer.rows, self.packed.stored_columns, dtype=torch.uint8)
        for index, segment in _segments(self.packed):
            if segment.bits != 16:
                codes[index] = unpack_codes(segment.codes, segment.bits, codes.shape[1])
        return codes

    @property
    def grid(self) -> Grid:
        """Of each row, or of each of its groups of ``GROUP_COLUMNS``; read for rows of codes."""
        grid: Grid | None = None
        for index, segment in _segments(self.packed):
            if segment.scale is None or segment.zero is None:
                continue
            if grid is None:
                grid = _blank_grid((self.layer.rows, *segment.scale.shape[1:]))
            grid.scale[index], grid.zero[index] = segment.scale, segment.zero
        return grid or _blank_grid((self.layer.rows,))

    def stored_values(self) -> Tensor:
        """The weight over the stored columns, float32 ``[rows, stored]``."""
        values = torch.zeros(self.layer.rows, self.packed.stored_columns)
        for index, segment in _segments(self.packed):
            if segment.scale is None or segment.zero is None:
                values[index] = segment.codes.float()
                continue
            codes = unpack_codes(segment.codes, segment.bits, values.shape[1])
            grid = Grid(segment.scale, segment.zero)
            values[index] = values_of(codes, grid, segment.group_columns)
        return values

    def dequantize(self) -> Tensor:
        """The weight that the packed layer stands for, float32 ``[rows, columns]``."""
        values = self.stored_values()
        if self.packed.input_columns is None:
            return values
        full = torch.zeros(self.layer.rows, self.layer.columns)
        full[:, self.packed.input_columns.long()] = values
        return full


def _segments(packed: PackedLinear) -> Iterator[tuple[Tensor, PackedSegment]]:
    """Each segment with the canonical indices of its rows."""
    start = 0
    for segment in packed.segments:
        yield packed.row_order[start : start + segment.rows].long(), segment
        start += segment.rows


def _blank_grid(shape: tuple[int, ...]) -> Grid:
    return Grid(torch.ones(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16))


class _Dequantized:
    """What a twin that fetches its weights fetches for a quantized layer."""

    def __init__(self, layer: QuantizedLayer) -> None:
        self._layer = layer

    @property
    def shape(self) -> tuple[int, ...]:
        return self._layer.shape

    def read(self) -> Tensor:
        return self._layer.dequantize()

    def rows(self, index: Sequence[int]) -> Tensor:
        return self.read()[list(index)]

    def reshaped(self, shape: tuple[int, ...]) -> "_Dequantized":
        raise ValueError(f"{self._layer.layer.name} has one shape, not {shape}")


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
            segment.bits * segment.rows * one.packed.stored_columns
            for one in self.layers.values()
            for segment in one.packed.segments
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
        self._grid = _blank_grid(shape)

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
        packed = PackedLinear.assemble(
            name=self._layer.name,
            columns=self._layer.columns,
            row_bits=self._row_bits,
            codes=self._codes,
            scale=self._grid.scale,
            zero=self._grid.zero,
            weight=self._weight.to(torch.bfloat16),
            activation_bits=activation_bits,
            input_columns=input_columns,
        )
        return QuantizedLayer(self._layer, packed)


def fake_quantized(network: VlaNetwork, quantized: QuantizedModel) -> VlaNetwork:
    """A copy of the float network that computes what the packed checkpoint computes.

    A network that fetches its weights is copied without them.
    """
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
    put_weight(twin, name, _Dequantized(layer))
    bias = overrides.get(f"{name}.bias")
    if bias is not None:
        twin.get_parameter(f"{name}.bias").copy_(bias)
    if layer.packed.activation_bits == 8:
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
    if layer.packed.input_columns is not None:
        kept = torch.zeros(layer.layer.columns, dtype=torch.bool)
        kept[layer.packed.input_columns.long()] = True
        tokens = tokens * kept
    weight = module.fetched() if isinstance(module, FetchedLinear) else module.weight
    rounded = F.linear(rounded_activations(tokens), weight, module.bias)
    return torch.where(layer.row_bits == 16, output, rounded)
