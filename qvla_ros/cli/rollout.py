"""``qvla rollout``: closed-loop success of a policy in the LIBERO simulation."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.progress import Progress
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.rollout_record import PairedComparison, RolloutRecord
    from qvla_ros.evaluate.success_statistics import SuccessRate

HELP = "run a policy in the LIBERO simulation: success rates with intervals, paired comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--suite", default="libero_spatial", help="LIBERO suite")
    parser.add_argument(
        "--tasks", type=_indices, default=(), metavar="I,J,...", help="indices of tasks"
    )
    parser.add_argument(
        "--episodes", type=int, default=50, help="official initial states 0 to N-1 of each task"
    )
    parser.add_argument(
        "--max-steps", type=int, default=220, help="after which an episode has failed (220)"
    )
    parser.add_argument(
        "--policy",
        type=Path,
        help="packed checkpoint or float model folder; without it nothing is run, and what --out "
        "holds is told",
    )
    parser.add_argument("--unnorm-key", help="statistics that a float model uses")
    parser.add_argument(
        "--image-orientation",
        choices=("as_is", "rotate_180", "mirror", "flip"),
        default="as_is",
        help="how the upright images of the simulation are turned; released LIBERO checkpoints "
        "were trained on left-right mirrored ones: mirror (default as_is)",
    )
    parser.add_argument(
        "--open-loop-steps",
        type=int,
        default=0,
        metavar="N",
        help="actions of each chunk that are executed before the policy is asked again (all)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON lines; an interrupted run goes on there"
    )
    parser.add_argument(
        "--against", type=Path, help="JSON lines of another policy to compare with"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing in ``--out`` and print the success rates."""
    # Here and not above, so that the help of the command line needs no torch.
    from qvla_ros.evaluate.rollout_record import compare_paired, rates_by_task

    others = [] if arguments.against is None else _recorded("--against", arguments.against)
    nothing_to_run = arguments.policy is None
    records = _recorded("--out", arguments.out) if nothing_to_run else _run(arguments)
    rates = rates_by_task(records)
    comparison = compare_paired(records, others) if others else None
    if arguments.json:
        print(json.dumps(to_json(records, rates, comparison), indent=2, allow_nan=False))
    else:
        print(table_text(records, rates, comparison))
    return 0


def table_text(
    records: "Sequence[RolloutRecord]",
    rates: "dict[tuple[str, int], SuccessRate]",
    comparison: "PairedComparison | None",
) -> str:
    """The results for people."""
    lines = [f"policy {records[0].policy_sha256[:12]} ({records[0].quant_tag})"]
    lines += [f"{suite} task {task}: {rate}" for (suite, task), rate in rates.items()]
    lines.append(f"all: {_total(records)}, MuJoCo {records[0].mujoco}")
    if comparison is not None:
        lines.append(f"against the other: {comparison}")
        if comparison.unpaired:
            lines.append(f"{comparison.unpaired} episodes were run by one of the two only")
    return "\n".join(lines)


def to_json(
    records: "Sequence[RolloutRecord]",
    rates: "dict[tuple[str, int], SuccessRate]",
    comparison: "PairedComparison | None",
) -> dict[str, object]:
    """The results for programs."""
    result: dict[str, object] = {
        "policy_sha256": records[0].policy_sha256,
        "quant_tag": records[0].quant_tag,
        "mujoco": records[0].mujoco,
        "tasks": [
            {"suite": suite, "task": task, **_rate_to_json(rate)}
            for (suite, task), rate in rates.items()
        ],
        "all": _rate_to_json(_total(records)),
    }
    if comparison is not None:
        result["against"] = {**asdict(comparison), "p_value": comparison.p_value}
    return result


def _rate_to_json(rate: "SuccessRate") -> dict[str, object]:
    return {
        "successes": rate.successes,
        "episodes": rate.episodes,
        "wilson_95": list(rate.interval),
    }


def _total(records: "Sequence[RolloutRecord]") -> "SuccessRate":
    from qvla_ros.evaluate.success_statistics import SuccessRate

    return SuccessRate(sum(record.success for record in records), len(records))


def _run(arguments: argparse.Namespace) -> "list[RolloutRecord]":
    from qvla_ros.evaluate.closed_loop import PolicySource, run_rollouts
    from qvla_ros.evaluate.rollout_plan import RolloutPlan

    if arguments.workers < 1:
        raise ConfigurationError(f"--workers must be at least 1, not {arguments.workers}")
    if not arguments.policy.exists():
        raise ConfigurationError(f"--policy {arguments.policy} does not exist")
    source = PolicySource(
        arguments.policy,
        arguments.unnorm_key,
        arguments.image_orientation,
        arguments.open_loop_steps,
    )
    plan = RolloutPlan(arguments.suite, arguments.tasks, arguments.episodes, arguments.max_steps)
    with Progress(len(plan.keys), f"rollout {arguments.policy.name}") as progress:
        return run_rollouts(source, plan, arguments.out, arguments.workers, progress.set)


def _recorded(option: str, path: Path) -> "list[RolloutRecord]":
    from qvla_ros.evaluate.rollout_record import read_records

    records = read_records(path)
    if not records:
        raise ConfigurationError(f"{option} {path} holds no episodes")
    return records


def _indices(text: str) -> tuple[int, ...]:
    """Parse ``0,2`` for argparse."""
    return tuple(int(part) for part in text.split(","))
