"""What the cells of a comparison say together: intervals, and each method against ours."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bootstrap import Blocks, Interval, mean_interval
from qvla_ros.evaluate.method_cell import CellKey, MethodCell
from qvla_ros.evaluate.rollout_record import RolloutRecord
from qvla_ros.evaluate.success_statistics import SuccessRate
from qvla_ros.quantize.rivals.registry import METHODS, OURS, REFERENCE


@dataclass(frozen=True, slots=True)
class Judgement:
    """One cell with what it means.

    Attributes:
        cell: As measured.
        error: Mean absolute action error with its interval; ``None``: the budget is unmet.
        against_ours: Mean of this method's error minus ours at the same budget, frame by frame;
            ``None`` for ours itself, or where one of the two is missing.
        success: In closed loop, where the checkpoint was run.
    """

    cell: MethodCell
    error: Interval | None
    against_ours: Interval | None
    success: SuccessRate | None

    @property
    def ours_is_better(self) -> bool:
        """Whether the whole interval of the difference is above zero."""
        return self.against_ours is not None and self.against_ours.low > 0

    def to_json(self) -> dict[str, object]:
        """A JSON object, without the errors of single frames."""
        plain = asdict(self.cell)
        del plain["frame_errors"]
        rate = self.success
        return plain | {
            "error": None if self.error is None else asdict(self.error),
            "against_ours": None if self.against_ours is None else asdict(self.against_ours),
            "ours_is_better": self.ours_is_better if self.against_ours else None,
            "success": None
            if rate is None
            else {
                "successes": rate.successes,
                "episodes": rate.episodes,
                "interval": rate.interval,
            },
        }


def judge(
    cells: Sequence[MethodCell],
    blocks: Sequence[Blocks],
    seed: int,
    rates: Mapping[str, SuccessRate] | None = None,
) -> list[Judgement]:
    """All cells with intervals and paired differences.

    Args:
        cells: Measured on the same frames.
        blocks: Of the held-out episodes.
        seed: Of the bootstrap.
        rates: Digest of a checkpoint to its success in closed loop.
    """
    by_key = {cell.key: cell for cell in cells}
    judged = []
    for cell in cells:
        ours = by_key.get(CellKey(OURS, cell.bits))
        error = None if cell.unmet else mean_interval(_frames(cell), blocks, seed)
        difference = None
        if ours is not None and cell.method != OURS and not ours.unmet and not cell.unmet:
            difference = mean_interval(_frames(cell) - _frames(ours), blocks, seed)
        rate = (rates or {}).get(cell.checkpoint_sha256)
        judged.append(Judgement(cell, error, difference, rate))
    return judged


def _frames(cell: MethodCell) -> np.ndarray:
    return np.asarray(cell.frame_errors)


def success_rates(
    files: Mapping[str, Sequence[RolloutRecord]], cells: Sequence[MethodCell]
) -> dict[str, SuccessRate]:
    """Success in closed loop by digest of the checkpoint.

    Args:
        files: Name of a file of roll-outs to its records.
        cells: Whose checkpoints were run.

    Raises:
        ConfigurationError: The records are of no checkpoint of this comparison.
    """
    known = {cell.checkpoint_sha256 for cell in cells if not cell.unmet}
    rates = {}
    for name, records in files.items():
        digests = {record.policy_sha256 for record in records}
        if len(digests) != 1 or not digests <= known:
            raise ConfigurationError(
                f"{name} holds episodes of no checkpoint of this comparison: compare with "
                "--keep-checkpoints and roll those out"
            )
        successes = sum(record.success for record in records)
        rates[digests.pop()] = SuccessRate(successes, len(records))
    return rates


def table_text(judged: Sequence[Judgement]) -> str:
    """Held-out action errors, one line a method and one column a budget.

    ``*``: the 95 % interval of the paired difference to ours is above zero; ``!``: it is not.
    """
    budgets = sorted({one.cell.bits for one in judged if one.cell.method != REFERENCE})[::-1]
    by_key = {one.cell.key: one for one in judged}
    lines = [f"{'average bits':<16}" + "".join(f"{bits:>11g}" for bits in budgets)]
    sizes = [
        next(one.cell.budget_bytes for one in judged if one.cell.bits == bits) for bits in budgets
    ]
    lines.append(f"{'bytes':<16}" + "".join(f"{size:>11,}" for size in sizes))
    for method in dict.fromkeys(one.cell.method for one in judged):
        if method == REFERENCE:
            cell = next(one.cell for one in judged if one.cell.method == method)
            lines.append(f"{method:<16}{cell.mean_l1:>10.5f}  in {cell.file_bytes:,} bytes")
            continue
        marks = (_mark(by_key.get(CellKey(method, bits))) for bits in budgets)
        lines.append(f"{method:<16}" + "".join(f"{mark:>11}" for mark in marks))
    lines.append("mean |a - a_float32|, held-out frames; * above ours, ! not above ours (95 %)")
    return "\n".join(lines)


def _mark(one: Judgement | None) -> str:
    if one is None:
        return "-"
    if one.error is None:
        return "no fit"
    sign = " " if one.against_ours is None else "*" if one.ours_is_better else "!"
    return f"{one.error.mean:.5f}{sign}"


def rivals_not_beaten(judged: Sequence[Judgement], most_bits: float) -> list[str]:
    """Rivals that ours is not surely better than, at budgets up to ``most_bits``."""
    return [
        f"{one.cell.method} at {one.cell.bits:g} bits"
        for one in judged
        if one.against_ours is not None
        and one.cell.bits <= most_bits
        and not METHODS[one.cell.method].ablation
        and not one.ours_is_better
    ]
