"""The methods by the names that ``qvla compare`` knows them by."""

from collections.abc import Callable
from dataclasses import dataclass

from qvla_ros.quantize.rivals.awq import Awq
from qvla_ros.quantize.rivals.contest import Contest, Method
from qvla_ros.quantize.rivals.evidence import NORM_PRODUCT
from qvla_ros.quantize.rivals.gptq import Gptq
from qvla_ros.quantize.rivals.ours import Ours, Parts
from qvla_ros.quantize.rivals.qvla import QvlaCode, QvlaPaper
from qvla_ros.quantize.rivals.round_to_nearest import Bf16, ClippedGroups, RoundToNearest
from qvla_ros.quantize.rivals.smoothquant import SmoothQuant
from qvla_ros.quantize.rounding import clipped_grid

REFERENCE, OURS = "bf16", "ours"


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """One method.

    Attributes:
        title: What it is, in a line.
        make: Begins it on a contest.
        ablation: Whether it is ours with a part exchanged, and not a rival.
    """

    title: str
    make: Callable[[Contest], Method]
    ablation: bool = False


def _ours(title: str, parts: Parts) -> MethodEntry:
    return MethodEntry(title, lambda contest: Ours(contest, parts), ablation=True)


METHODS: dict[str, MethodEntry] = {
    OURS: MethodEntry("Gauss-Newton score, knapsack over {0,2,3,4,8,16}, reconstruction", Ours),
    REFERENCE: MethodEntry("every row in BF16", Bf16),
    "rtn": MethodEntry("round to nearest, symmetric, a scale a row", RoundToNearest),
    "rtn-g128-clip": MethodEntry("round to nearest, groups of 128, clip search", ClippedGroups),
    "smoothquant": MethodEntry("SmoothQuant, int8 inputs", SmoothQuant),
    "awq": MethodEntry("AWQ, scales and clips", Awq),
    "gptq": MethodEntry("GPTQ, act-order, true-sequential", Gptq),
    "gptq-clip": MethodEntry(
        "GPTQ, ranges clipped by the weight's error", lambda contest: Gptq(contest, clipped_grid)
    ),
    "qvla-code": MethodEntry("QVLA as in its public code", QvlaCode),
    "qvla-paper": MethodEntry("QVLA as in its paper", QvlaPaper),
    "ours-norm-score": _ours("ours, scored by the norm product", Parts(score=NORM_PRODUCT)),
    "ours-clip-only": _ours("ours, rounded without compensation", Parts(reconstruct=False)),
    "ours-greedy": _ours("ours, allocated by the paper's greedy", Parts(greedy=True)),
    "ours-uniform": _ours("ours, not allocated: even widths", Parts(uniform=True)),
    "ours-no-3bit": _ours("ours, without 3-bit rows", Parts(widths=(0, 2, 4, 8, 16))),
    "ours-a8": _ours("ours, int8 inputs where they cost little", Parts(int8="cheap")),
    "ours-a8-all": _ours("ours, int8 inputs in all layers", Parts(int8="all")),
}
"""In the order in which tables show them; all but the reference and ablations are rivals of ours."""
