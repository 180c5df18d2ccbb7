"""A whole network rounded layer by layer, each row at the width of a plan."""

from collections.abc import Callable, Mapping

from torch import Tensor

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import GROUP_COLUMNS, LayerCodes, QuantizedModel
from qvla_ros.quantize.rounding import Grid, GridSearch, codes_on, in_groups

RowRounding = Callable[[LinearLayer, Tensor, int], tuple[Grid, Tensor]]
"""Maps a layer, rows ``[n, columns]`` of its weight and a width to their grids and codes."""


def rounded(
    network: VlaNetwork,
    plan: BitPlan,
    rounding: RowRounding,
    grouped: bool = False,
    activation_bits: int = 16,
    overrides: Mapping[str, Tensor] | None = None,
) -> QuantizedModel:
    """Round every layer of ``network``, which may be a rescaled twin of the float network.

    Args:
        network: Whose weights are rounded.
        plan: The widths.
        rounding: Of rows of one width.
        grouped: Whether grids are those of groups of columns.
        activation_bits: Of all layers.
        overrides: Parameters in which ``network`` differs from the float network.
    """
    layers = {}
    for layer in plan.layers:
        weight = linear_weight(network, layer).float()
        codes = LayerCodes(layer, plan.row_bits[layer.name], weight, grouped)
        for bits, index in codes.rows_by_width():
            codes.put(index, *rounding(layer, weight[index], bits))
        layers[layer.name] = codes.finished(activation_bits)
    return QuantizedModel(layers, dict(overrides or {}))


def nearest_on(
    search: GridSearch, weight: Tensor, bits: int, energy: Tensor, grouped: bool = False
) -> tuple[Grid, Tensor]:
    """The grids that ``search`` finds for rows or for their groups, and the nearest codes."""
    if not grouped:
        grid = search(weight, bits, energy)
        return grid, codes_on(weight, grid, bits)
    grid = in_groups(search, weight, bits, energy, GROUP_COLUMNS)
    return grid, codes_on(weight, grid, bits, GROUP_COLUMNS)
