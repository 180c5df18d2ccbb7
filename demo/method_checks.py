"""Checks of the method that are no comparison: scores, allocator, packed against fake."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qvla_ros.errors import BudgetError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import Observations, read_episode
from qvla_ros.models.registry import LoadedModel, load_model
from qvla_ros.policy.policy import load_policy
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import CalibrationSet, calibration_set
from qvla_ros.quantize.greedy import demote
from qvla_ros.quantize.knapsack import Knapsack
from qvla_ros.quantize.pipeline import write_quantized
from qvla_ros.quantize.quantized_model import fake_quantized
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.evidence import Evidence, scores_of_same_steps
from qvla_ros.quantize.rivals.registry import METHODS
from qvla_ros.quantize.score_check import RowChoice, as_text, check_scores
from qvla_ros.quantize.sensitivity import MeasureSettings
from qvla_ros.quantize.widths import WIDTHS

_CASES = 2000
_SCORE_FRAMES, _SCORE_PROBES = 2, 32
_PACKED_FRAMES = 32


def frames_of(model: LoadedModel, bags: Sequence[Path], count: int) -> CalibrationSet:
    """So many frames, evenly over the bags."""
    layout = BagLayout.of_robot(model.processing.settings.robot)
    observations = Observations.of_all(read_episode(bag, layout).observations for bag in bags)
    return calibration_set(observations, model.processing, count)


def rank_correlations_of_scores(
    folder: Path, bags: Sequence[Path], rows: int, seed: int
) -> dict[str, object]:
    """Spearman of three scores with the exact action change of single rows, same steps."""
    model = load_model(folder)
    robot = model.processing.settings.robot
    strata = check_scores(
        model.network,
        frames_of(model, bags, _SCORE_FRAMES),
        ActionMetric.uniform(robot.horizon, robot.action_dim),
        MeasureSettings(probes=_SCORE_PROBES, seed=seed),
        RowChoice(rows, seed=seed),
        partial(scores_of_same_steps, model.network, _SCORE_FRAMES),
    )
    return {
        "spearman_by_width": {str(one.bits): one.spearman for one in strata if one.part == "all"},
        "spearman_by_stratum": [
            {"part": s.part, "kind": s.kind, "bits": s.bits, "rows": s.rows, **s.spearman}
            for s in strata
        ],
        "spearman_rows": rows,
        "spearman_frames": _SCORE_FRAMES,
        "spearman_table": as_text(strata),
    }


def allocator_against_brute_force(seed: int) -> dict[str, object]:
    """Random cases of up to six rows: does the knapsack find what trying everything finds?"""
    rng = np.random.default_rng(seed)
    mismatches = worse = 0
    for _ in range(_CASES):
        scores, cost, limit = _tiny_case(rng)
        best = _brute_force(scores, cost, limit)
        try:
            found = Knapsack(scores, cost).solve(limit).score
        except BudgetError:
            found = np.inf
        mismatches += not np.isclose(found, best, rtol=1e-12, atol=1e-12)
        worse += _worse_than_greedy(scores, cost, limit, found)
    return {
        "allocator_vs_bruteforce_mismatches": {
            "cases": _CASES,
            "mismatches": mismatches,
            "worse_than_greedy": worse,
        }
    }


def _tiny_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, costs of rows of several lengths, and a limit; every third case full of ties."""
    rows = int(rng.integers(1, 6))
    scores = np.sort(rng.lognormal(sigma=2, size=(rows, len(WIDTHS))), axis=1)[:, ::-1].copy()
    if rng.integers(3) == 0:
        scores = np.round(scores)
    scores[:, -1] = 0.0
    scores[rng.random(rows) < 0.2, 0] = np.inf
    cost = rng.choice([2, 3, 5], rows)[:, None] * np.asarray(WIDTHS)
    return scores, cost, int(rng.integers(0, cost[:, -1].sum() + 1))


def _brute_force(scores: np.ndarray, cost: np.ndarray, limit: int) -> float:
    rows = np.arange(len(scores))
    choices = np.array(list(itertools.product(range(scores.shape[1]), repeat=len(scores))))
    fits = cost[rows, choices].sum(1) <= limit
    return float(scores[rows, choices].sum(1)[fits].min(initial=np.inf))


def _worse_than_greedy(scores: np.ndarray, cost: np.ndarray, limit: int, found: float) -> bool:
    try:
        level = demote(scores, WIDTHS, cost, limit, "marginal")
    except BudgetError:
        return False
    return found > float(scores[np.arange(len(scores)), level].sum()) * (1 + 1e-12)


def packed_against_fake(
    folder: Path, calibration: Sequence[Path], heldout: Sequence[Path], work: Path
) -> dict[str, object]:
    """The largest difference of any action between a packed file and its fake-quantized twin.

    Both compute in float32; ours and a method with folded norms and int8 inputs, on frames that
    nobody calibrated on. The measurements are those that the comparison of this run made.
    """
    model = load_model(folder)
    frames = frames_of(model, heldout, _PACKED_FRAMES)
    evidence = Evidence(work / "compare" / "evidence")
    contest = Contest(model, frames_of(model, calibration, 64), evidence, work)
    found = {}
    for name, bits in (("ours", 3.0), ("awq", 4.0)):
        quantized = METHODS[name].make(contest).quantize(contest.budget_bytes(bits))
        path = work / f"{name}.qvla.safetensors"
        write_quantized(model, quantized, BitBudget(average_bits_per_weight=16.0), path)
        policy, twin = (
            load_policy(path, "auto", torch.float32),
            fake_quantized(model.network, quantized),
        )
        with torch.inference_mode():
            found[f"{name}@{bits:g}"] = max(
                float((policy.normalized_actions(batch) - twin(batch)).abs().max())
                for batch in frames.batches()
            )
    return {
        "packed_equals_fake_max_difference": max(found.values()),
        "packed_equals_fake": found,
    }
