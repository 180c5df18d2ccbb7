"""AWQ (Lin et al., MLSys 2024): scale up the columns that see large inputs, then clip.

For every input, ``s = E|x|^a`` (scaled so that its largest and smallest are reciprocal) with
``a`` of 0, 0.05 .. 0.95 by least output error; then each group's range shrinks by up to half in
steps of 1/20 by the error of the group's part of the output, but for query and key weights, whose
product amplifies what a clip loses. Asymmetric min-max grids, groups of 128, inputs stay as they
are. Scales fold into the norms, values (for the attention output) and up (for down), as in the
public code for Llama.

Deviations. The error is that of the linear layers themselves (the paper's eq. 4), on the second
moment of all calibration tokens; the public code looks at the output of the whole block, on
samples. A GELU between two layers takes no scale (the public code divides at run time there,
which no checkpoint of ours can say). The zero point is not rounded to an integer, which is
strictly finer. Where a scale a row is better at equal bytes than groups of 128, it is taken.
"""

import copy
from functools import partial

import torch
from torch import Tensor

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import GROUP_COLUMNS, QuantizedModel
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.folding import (
    ScalingGroup,
    changed_parameters,
    feeder_groups,
    fold,
    norm_groups,
)
from qvla_ros.quantize.rivals.scores import row_errors
from qvla_ros.quantize.rivals.selection import better_of_groups_and_rows
from qvla_ros.quantize.rounding import Grid, codes_on, range_grid, values_of

_STEPS = 20
_SMALLEST = 1e-4  # scale of an input column that is never seen
_UNCLIPPED = ("qkv", "q_proj", "k_proj")


class Awq:
    """See the module."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._by_name = {layer.name: layer for layer in contest.layers}

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        return better_of_groups_and_rows(self._contest, partial(self._rounded, max_bytes))

    def _rounded(self, max_bytes: int, grouped: bool) -> QuantizedModel:
        plan = self._contest.spread(max_bytes, grouped)
        twin = copy.deepcopy(self._contest.network)
        scales: dict[str, Tensor] = {}
        for group in (*norm_groups(twin), *feeder_groups(twin)):
            scale = fold(twin, group, self._best_scale(twin, group, plan, grouped))
            scales |= dict.fromkeys(group.layers, scale)
        return rounded(
            twin,
            plan,
            _Clipping(self._contest, scales, grouped),
            grouped,
            overrides=changed_parameters(self._contest.network, twin),
        )

    def _best_scale(
        self, twin: VlaNetwork, group: ScalingGroup, plan: BitPlan, grouped: bool
    ) -> Tensor:
        layers = [self._by_name[name] for name in group.layers]
        inputs = self._contest.evidence.inputs(layers[0])
        weight = torch.cat([linear_weight(twin, layer) for layer in layers])
        bits = torch.cat([plan.row_bits[layer.name] for layer in layers])
        best, least = torch.ones(layers[0].columns), float("inf")
        for step in range(_STEPS):
            scale = (inputs.magnitude ** (step / _STEPS)).clamp_min(_SMALLEST)
            scale = scale / (scale.max() * scale.min()).sqrt()
            error = _rounded_by_range(weight * scale, bits, grouped) / scale - weight
            loss = float(row_errors(error[None], inputs.moment).sum())
            if loss < least:
                best, least = scale, loss
        return best


def _rounded_by_range(weight: Tensor, row_bits: Tensor, grouped: bool) -> Tensor:
    """The weight on min-max grids, rows at their widths."""
    values = weight.clone()
    for bits in row_bits.unique().tolist():
        index = torch.nonzero(row_bits == bits).flatten()
        grid, codes = nearest_on(
            range_grid, weight[index], bits, torch.ones(weight.shape[1]), grouped
        )
        values[index] = values_of(codes, grid, GROUP_COLUMNS if grouped else None)
    return values


class _Clipping:
    """Rounds rows on ranges that are shrunk where that lowers the output error."""

    def __init__(self, contest: Contest, scales: dict[str, Tensor], grouped: bool) -> None:
        self._contest, self._scales, self._grouped = contest, scales, grouped

    def __call__(self, layer: LinearLayer, rows: Tensor, bits: int) -> tuple[Grid, Tensor]:
        if layer.name.endswith(_UNCLIPPED):
            return nearest_on(range_grid, rows, bits, torch.ones(layer.columns), self._grouped)
        moment = self._contest.evidence.inputs(layer).moment
        if layer.name in self._scales:
            scale = self._scales[layer.name]
            moment = moment / scale[:, None] / scale
        if not self._grouped:
            grid = _clipped_range(rows, bits, moment)
            return grid, codes_on(rows, grid, bits)
        starts = range(0, layer.columns, GROUP_COLUMNS)
        parts = [slice(start, start + GROUP_COLUMNS) for start in starts]
        grids = [_clipped_range(rows[:, part], bits, moment[part, part]) for part in parts]
        grid = Grid(
            torch.stack([one.scale for one in grids], 1),
            torch.stack([one.zero for one in grids], 1),
        )
        return grid, codes_on(rows, grid, bits, GROUP_COLUMNS)


def _clipped_range(weight: Tensor, bits: int, moment: Tensor) -> Grid:
    """Of the ranges clipped at 1, 0.95 .. 0.55 of each row's largest magnitude, the best."""
    largest = weight.abs().amax(1, keepdim=True)
    energy = moment.diagonal()
    best: Grid | None = None
    least = torch.full((len(weight),), float("inf"), dtype=torch.float64)
    for step in range(_STEPS // 2):
        bound = largest * (1 - step / _STEPS)
        grid = range_grid(weight.clamp(-bound, bound), bits, energy)
        error = values_of(codes_on(weight, grid, bits), grid) - weight
        loss = row_errors(error[None], moment).flatten()
        better = loss < least
        least = torch.where(better, loss, least)
        if best is None:
            best = grid
        best = Grid(
            torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
        )
    if best is None:
        raise ValueError("there is no clip to try")
    return best
