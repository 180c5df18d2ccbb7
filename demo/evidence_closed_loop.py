"""``make evidence-closed-loop``: what the robot does, recomputed from the kept episodes.

    python -m demo.evidence_closed_loop --out evidence/closed-loop.json

Takes seconds. With ``--simulate`` the episodes are run first (hours; it can be interrupted and
goes on) and kept in ``demo/closed_loop``. Every figure comes from the kept records of episodes,
in which a repeated episode is refused; the held-out action errors are those that were measured of
the very checkpoints that were rolled out.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from demo import calibration_ablation, larger_policy
from demo.closed_loop_figure import write_figure
from demo.closed_loop_runs import (
    ROOT,
    ROS_EPISODES,
    ROS_RUNS,
    add_arguments,
    keep,
    methods_of,
    run_cells,
    run_paired,
    settings_of,
)
from demo.closed_loop_table import table_text
from demo.provenance import provenance, write_evidence
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.method_cell import CellKey
from qvla_ros.evaluate.rollout_record import (
    EpisodeKey,
    RolloutRecord,
    compare_paired,
    rates_by_task,
    read_records,
)
from qvla_ros.evaluate.success_statistics import SuccessRate
from qvla_ros.quantize.rivals.registry import OURS, REFERENCE
from qvla_ros.quantize.score_check import spearman

FEWEST_CELLS = 8
FLOAT_TASKS, FLOAT_EPISODES, FLOAT_RATE = 5, 50, 0.8
RETENTION = {4.0: 0.99, 3.0: 0.97}
RESAMPLES = 2_000
NOT_MEASURED = "not measured"
PREDICTORS = {
    "heldout_action_error": "mean absolute held-out action error",
    "heldout_action_rms": "root mean square of the same",
    "heldout_worst_frames": "95th percentile over frames of a frame's mean absolute action error",
    "heldout_gripper_flips": "gripper decisions that differ",
    "heldout_hidden_error": "root mean square error of the last hidden states",
    "bits_saved": "16 less the average width of a weight",
}
"""What is known of a checkpoint without simulating, and might tell its success."""

Records = Sequence[RolloutRecord]


def measure(kept: Path, seed: int) -> dict[str, object]:
    """All figures of ``evidence/closed-loop.json`` that episodes tell."""
    records = {
        path.relative_to(kept).as_posix().removesuffix(".jsonl.xz"): read_records(path)
        for path in sorted(kept.rglob("*.jsonl.xz"))
    }
    return {
        **_policy(kept, records, seed),
        "packed_against_float": _against(records.get("packed", []), records.get("float", [])),
        "half_chunks_against_whole": _against(
            records.get("packed_half_chunks", []), records.get("packed", [])
        ),
        "ros_in_the_loop": {
            name: _through_ros(records[name], records.get(in_process, []))
            for name, (_, _, in_process) in ROS_RUNS.items()
            if name in records
        }
        or NOT_MEASURED,
        "calibration_ablation": _calibrations(kept, records),
        "larger_policy": _larger(kept, records, seed),
        "mujoco": sorted({one.mujoco for group in records.values() for one in group}),
    }


def _policy(kept: Path, records: dict[str, list[RolloutRecord]], seed: int) -> dict[str, object]:
    """What is asked of every policy: float, by methods and budgets, and what predicts it."""
    cells = _cells(kept, records)
    outcomes = {
        stem.removeprefix("cells/"): {one.key: one.success for one in group}
        for stem, group in records.items()
    }
    return {
        "float_success": _float_success(records.get("float", [])),
        "cells": cells,
        "predictor_rank_correlation": _predictors(cells, outcomes, seed),
    }


def _larger(
    kept: Path, records: dict[str, list[RolloutRecord]], seed: int
) -> dict[str, object] | str:
    folder, prefix = kept / larger_policy.FOLDER, f"{larger_policy.FOLDER}/"
    if not folder.exists():
        return NOT_MEASURED
    own = {stem.removeprefix(prefix): g for stem, g in records.items() if stem.startswith(prefix)}
    told = json.loads((folder / larger_policy.OUTLIERS).read_text(encoding="utf-8"))
    return {**_policy(folder, own, seed), "outliers": told}


def _float_success(records: Records) -> dict[str, object] | str:
    if not records:
        return NOT_MEASURED
    tasks = {
        f"{suite}/{task}": _rate(rate) for (suite, task), rate in rates_by_task(records).items()
    }
    mean = float(np.mean([rate.rate for rate in rates_by_task(records).values()]))
    return {"tasks": tasks, "all": _rate(_total(records)), "mean_over_tasks": mean}


def _against(ours: Records, others: Records) -> dict[str, object] | str:
    """Two policies over the initial states that both have run."""
    if not ours or not others:
        return NOT_MEASURED
    paired = compare_paired(ours, others)
    first, second = paired.both + paired.only_first, paired.both + paired.only_second
    return {
        "n": paired.pairs,
        "successes": first,
        "other_successes": second,
        "only_this": paired.only_first,
        "only_other": paired.only_second,
        "retention": first / second if second else None,
        "p_value": paired.p_value,
    }


def _cells(kept: Path, records: dict[str, list[RolloutRecord]]) -> list[dict[str, object]]:
    if not (kept / "cells.json").exists():
        return []
    told = json.loads((kept / "cells.json").read_text(encoding="utf-8"))
    by_stem = _of_checkpoints(records, "cells", told)
    reference = next((by_stem[s] for s in told if told[s]["method"] == REFERENCE), [])
    cells = []
    for stem, facts in told.items():
        group = by_stem[stem]
        is_ours = facts["method"] == OURS
        ours = [] if is_ours else by_stem.get(f"{OURS}@{facts['bits']:g}", [])
        cells.append(
            {
                **facts,
                "bits_saved": 16 - facts["average_bits_per_weight"],
                **_rate(_total(group)),
                "against_bf16": _against(group, reference),
                "against_ours": _against(group, ours),
            }
        )
    return sorted(cells, key=lambda one: (-one["bits"], one["method"]))


def _of_checkpoints(
    records: dict[str, list[RolloutRecord]], folder: str, told: dict[str, dict]
) -> dict[str, list[RolloutRecord]]:
    """Name of each checkpoint to its episodes.

    Raises:
        ConfigurationError: One has none, or they are another checkpoint's.
    """
    groups = {name: records.get(f"{folder}/{name}", []) for name in told}
    for name, facts in told.items():
        if {one.policy_sha256 for one in groups[name]} != {facts["checkpoint_sha256"]}:
            raise ConfigurationError(
                f"{folder}/{name}.jsonl.xz is missing, empty, or of another checkpoint"
            )
    return groups


def _calibrations(
    kept: Path, records: dict[str, list[RolloutRecord]]
) -> dict[str, dict[str, object]] | str:
    """Checkpoints that differ in what they were calibrated with, against the first."""
    path = kept / calibration_ablation.FOLDER / "checkpoints.json"
    if not path.exists():
        return NOT_MEASURED
    told = json.loads(path.read_text(encoding="utf-8"))
    by_arm = _of_checkpoints(records, calibration_ablation.FOLDER, told)
    first = by_arm.get(calibration_ablation.FIRST, [])
    found = {}
    for arm, facts in told.items():
        group = by_arm[arm]
        against = NOT_MEASURED if arm == calibration_ablation.FIRST else _against(group, first)
        found[arm] = {**facts, **_rate(_total(group)), "against_first": against}
    return found


def _through_ros(records: Records, in_process: Records) -> dict[str, object]:
    facts = [one.ros for one in records if one.ros is not None]
    if len(facts) != len(records):
        raise ConfigurationError("an episode of a run through ROS 2 tells nothing of its messages")
    digests = {one.key: one.actions_sha256 for one in in_process}
    pairs = [one for one in records if one.key in digests]
    drops: Counter[str] = Counter()
    for one in facts:
        drops.update(one.drops)
    ages = np.array([one.chunk_age_ms for one in facts])
    return {
        **_rate(_total(records)),
        "quant_tag": records[0].quant_tag,
        "real_time_factor": facts[0].real_time_factor,
        "camera_every_steps": facts[0].camera_every,
        "against_in_process": _against(records, in_process),
        "identical_actions": sum(digests[one.key] == one.actions_sha256 for one in pairs),
        "steps": sum(one.steps for one in records),
        "chunks": sum(one.chunks for one in facts),
        "chunk_age_ms": {
            "median_of_p50": float(np.median(ages[:, 0])),
            "worst_p95": float(ages[:, 1].max()),
            "max": float(ages[:, 2].max()),
        },
        "deadline_misses": sum(one.deadline_misses for one in facts),
        "expired_chunks": sum(one.expired_chunks for one in facts),
        "drops": dict(drops),
        "resent": sum(one.resent for one in facts),
    }


def _predictors(
    cells: Sequence[dict], outcomes: dict[str, dict[EpisodeKey, bool]], seed: int
) -> dict[str, object] | str:
    """Spearman of each predictor and the share of failures, over the episodes of all cells.

    The intervals resample cells and episodes, the same draws for all predictors.
    """
    chosen = [one for one in cells if one["method"] != REFERENCE]
    if len(chosen) < FEWEST_CELLS:
        return NOT_MEASURED
    known = [outcomes[CellKey(one["method"], one["bits"]).stem] for one in chosen]
    common = sorted(set.intersection(*(set(one) for one in known)))
    failed = np.array([[not one[key] for key in common] for one in known])
    values = {name: np.array([one[name] for one in chosen]) for name in PREDICTORS}
    rng, spread = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        some = rng.integers(0, len(chosen), len(chosen))
        episodes = rng.integers(0, len(common), len(common))
        failures = failed[np.ix_(some, episodes)].mean(1)
        spread.append([_rank_correlation(each[some], failures) for each in values.values()])
    draws = dict(zip(PREDICTORS, np.array(spread).T, strict=True))
    first = next(iter(PREDICTORS))
    found: dict[str, object] = {"cells": len(chosen), "episodes_of_each": len(common)}
    for name, each in values.items():
        rank = _rank_correlation(each, failed.mean(1))
        found[name] = (
            {
                "is": PREDICTORS[name],
                "spearman_with_failure": rank,
                "bootstrap_95": _interval(draws[name]),
                f"less_{first}": _interval(draws[name] - draws[first]),
            }
            if np.isfinite(rank)
            else f"{NOT_MEASURED}: all cells are equal"
        )
    return found


def _rank_correlation(values: np.ndarray, failures: np.ndarray) -> float:
    """Spearman, or not a number where all are equal."""
    return spearman(values, failures) if np.ptp(values) and np.ptp(failures) else np.nan


def _interval(samples: np.ndarray) -> list[float]:
    return [round(float(bound), 4) for bound in np.nanpercentile(samples, [2.5, 97.5])]


def _total(records: Records) -> SuccessRate:
    return SuccessRate(sum(one.success for one in records), len(records))


def _rate(rate: SuccessRate) -> dict[str, object]:
    return {
        "successes": rate.successes,
        "n": rate.episodes,
        "wilson_95": [round(bound, 4) for bound in rate.interval],
    }


def faults(found: dict) -> list[str]:
    """Which claims these figures do not bear, or do not bear yet."""
    wrong = _faults_of_float(found["float_success"])
    cells = {(one["method"], one["bits"]): one for one in found["cells"]}
    for bits, limit in RETENTION.items():
        against = cells.get((OURS, bits), {}).get("against_bf16", NOT_MEASURED)
        if against == NOT_MEASURED:
            wrong.append(f"ours at {bits:g} bits: not measured")
        elif against["retention"] is None or against["retention"] < limit:
            wrong.append(f"ours at {bits:g} bits keeps {against['retention']} of BF16's success")
    if found["ros_in_the_loop"] == NOT_MEASURED:
        return [*wrong, "ROS in the loop: not measured"]
    for name, one in found["ros_in_the_loop"].items():
        against = one["against_in_process"]
        if against == NOT_MEASURED or against["n"] < ROS_EPISODES:
            wrong.append(f"{name}: fewer than {ROS_EPISODES} pairs")
        elif against["p_value"] < 0.05:
            wrong.append(f"{name} differs from in process: p = {against['p_value']:.3g}")
    return wrong


def _faults_of_float(found: dict | str) -> list[str]:
    if isinstance(found, str):
        return ["float policy: not measured"]
    tasks, wrong = found["tasks"], []
    if len(tasks) < FLOAT_TASKS or min(one["n"] for one in tasks.values()) < FLOAT_EPISODES:
        wrong.append(
            f"float policy: {len(tasks)} tasks of {[one['n'] for one in tasks.values()]} "
            f"episodes, not {FLOAT_TASKS} of {FLOAT_EPISODES}"
        )
    if found["mean_over_tasks"] < FLOAT_RATE:
        wrong.append(f"float policy: mean success {found['mean_over_tasks']:.3f}")
    return wrong


def main() -> int:
    """Command line; the exit status is 1 if a claim is not borne out."""
    parser = argparse.ArgumentParser(description="Recompute what closed-loop episodes tell.")
    parser.add_argument("--out", type=Path, default=ROOT / "evidence" / "closed-loop.json")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--simulate", action="store_true", help="run what is missing first")
    add_arguments(parser)
    options = parser.parse_args()
    began, trouble = time.monotonic(), []
    if options.simulate:
        settings = settings_of(options)
        for step in (
            lambda: run_paired(settings),
            lambda: run_cells(settings, methods_of(options.methods), options.budgets),
            lambda: calibration_ablation.run(settings),
            lambda: larger_policy.run(options),
        ):
            try:
                step()
            except ConfigurationError as error:  # the rest can still be measured
                trouble.append(f"{error}")
        keep(settings, options.kept)
        calibration_ablation.keep(settings, options.kept)
    found: dict = measure(options.kept, options.seed)
    wrong = [*trouble, *faults(found)]
    seconds = round(time.monotonic() - began, 1)
    found |= {"faults": wrong, "seconds": seconds, **provenance(("numpy", "torch"))}
    write_evidence(options.out, found, allow_nan=False)
    print(table_text(found))
    for text in wrong:
        print(f"evidence: {text}", file=sys.stderr)
    if found["cells"]:
        write_figure(found["cells"], options.out.with_suffix(".svg"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
