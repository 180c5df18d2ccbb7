"""``qvla replay``: recorded episodes through a packed checkpoint, as the robot would run it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.model_arguments import (
    MS,
    add_bag_arguments,
    add_checkpoint_arguments,
    load_policy_of,
    read_episodes,
    sync_settings,
)
from qvla_ros.cli.progress import Progress
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.replay import ReplayedPolicy, ReplaySettings
    from qvla_ros.evaluate.replay_result import ReplayResult, ReplaySummary
    from qvla_ros.policy.chunk_strategy import ChunkStrategy
    from qvla_ros.policy.policy import Policy

HELP = "replay bags through a packed checkpoint: action error, latency, what was dropped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_bag_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--reference", type=Path, metavar="MODEL_FOLDER", help="float model to compare with"
    )
    _add_robot_arguments(parser)
    parser.add_argument(
        "--limits", type=Path, metavar="YAML", help="refuse chunks beyond them; from qvla limits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with figures")
    _add_thresholds(parser)


def _add_robot_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how the robot is simulated."""
    group = parser.add_argument_group("how the robot is simulated", "as the node's parameters")
    group.add_argument(
        "--latency-ms",
        type=float,
        help="simulated time of every inference; without it the time that it takes here",
    )
    group.add_argument(
        "--request-period-ms",
        type=float,
        help="least time between two inferences; without it half of the chunk's horizon",
    )
    group.add_argument(
        "--ttl-ms", type=float, help="how old a chunk may get; without it the chunk's horizon"
    )
    group.add_argument(
        "--strategy",
        choices=("latest_only", "blend", "ensemble"),
        default="latest_only",
        help="what overlapping chunks become; grippers are never averaged",
    )
    group.add_argument("--blend-ms", type=float, default=100.0, help="with blend (default 100)")
    group.add_argument(
        "--ensemble-decay", type=float, default=0.01, help="with ensemble (default 0.01)"
    )
    group.add_argument("--warmup", type=int, default=2, help="inferences before the first")


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("when to exit with 1")
    group.add_argument(
        "--max-error",
        type=float,
        metavar="L1",
        help="mean absolute error in normalised action space, against the reference if there is "
        "one, else against the recorded actions",
    )
    group.add_argument("--max-latency-ms", type=float, help="p99 of the real time here")
    group.add_argument("--max-seam-jump", type=float, metavar="L1", help="normalised")
    group.add_argument("--max-deadline-misses", type=int, metavar="N")
    group.add_argument("--max-dropped", type=int, metavar="N", help="all reasons together")
    group.add_argument("--max-trips", type=int, metavar="N", help="sum over all limits")


def run(arguments: argparse.Namespace) -> int:
    """Replays and prints; 1 if a threshold is exceeded or the robot would have stopped, else 0."""
    # Here and not above, so that the help of the command line needs no torch.
    from qvla_ros.evaluate.figure_style import require_matplotlib
    from qvla_ros.evaluate.replay_report import table_text
    from qvla_ros.evaluate.replay_result import summarize
    from qvla_ros.policy.policy import float_policy

    if arguments.html is not None:
        require_matplotlib()  # now rather than after minutes of replay
    policy = load_policy_of(arguments)
    reference = None
    if arguments.reference is not None:
        spoken = policy.processing.settings
        reference = float_policy(arguments.reference, spoken.unnorm_key, spoken.robot.name)
    settings = _replay_settings(arguments, policy)
    results = _replay_all(arguments, policy, settings, reference)
    summary = summarize(results)
    if arguments.json:
        print(json.dumps(_to_json(results), indent=2, allow_nan=False))
    else:
        print(table_text(results))
    if arguments.html is not None:
        _write_page(arguments, policy, settings, results)
    failures = _failures(arguments, summary)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _replay_all(
    arguments: argparse.Namespace,
    policy: "Policy",
    settings: "ReplaySettings",
    reference: "ReplayedPolicy | None",
) -> "list[ReplayResult]":
    """Replays every bag, with a progress line."""
    from qvla_ros.evaluate.replay import replay

    results = []
    for bag, episode in zip(
        arguments.bags, read_episodes(arguments, policy.processing.settings.robot), strict=True
    ):
        with Progress(len(episode.observations), f"replay {bag.name}") as progress:
            results.append(replay(policy, episode, settings, reference, progress.set))
    return results


def _replay_settings(arguments: argparse.Namespace, policy: "Policy") -> "ReplaySettings":
    """How the robot is simulated, by the arguments and the policy's own times.

    Raises:
        ConfigurationError: A time makes no sense, or the limits cannot be read.
    """
    from qvla_ros.evaluate.replay import ReplaySettings
    from qvla_ros.policy.action_limits import read_limits
    from qvla_ros.policy.frame_sync import request_interval_ns
    from qvla_ros.policy.schedule import SchedulerSettings

    limits = arguments.limits
    latency_ns, request_ns, ttl_ns = (
        _ns(arguments, name) for name in ("latency_ms", "request_period_ms", "ttl_ms")
    )
    if ttl_ns == 0 or arguments.warmup < 0:
        raise ConfigurationError("--ttl-ms must be positive, and --warmup not negative")
    return ReplaySettings(
        SchedulerSettings(
            policy.horizon * policy.period_ns if ttl_ns is None else ttl_ns,
            sync_settings(arguments).max_age_ns,
            limits=None if limits is None else read_limits(limits, policy.action_names),
        ),
        request_interval_ns(policy.horizon, policy.period_ns, request_ns or 0),
        latency_ns,
        arguments.warmup,
        strategy=_strategy(arguments, policy),
    )


def _strategy(arguments: argparse.Namespace, policy: "Policy") -> "ChunkStrategy | None":
    import numpy as np

    from qvla_ros.evaluate.fidelity import Grippers
    from qvla_ros.policy.chunk_strategy import Blend, Ensemble

    averaged = np.ones(len(policy.action_names), bool)
    averaged[list(Grippers.of(policy.processing).dimensions)] = False
    if arguments.strategy == "blend":
        if not arguments.blend_ms > 0:
            raise ConfigurationError(f"--blend-ms must be positive, not {arguments.blend_ms}")
        return Blend(averaged, round(arguments.blend_ms * MS))
    if arguments.strategy == "ensemble":
        return Ensemble(averaged, policy.horizon, arguments.ensemble_decay)
    return None


def _ns(arguments: argparse.Namespace, name: str) -> int | None:
    value = getattr(arguments, name)
    if value is None:
        return None
    if not value >= 0:
        raise ConfigurationError(f"--{name.replace('_', '-')} cannot be negative: {value}")
    return round(value * MS)


def _failures(arguments: argparse.Namespace, summary: "ReplaySummary") -> list[str]:
    """The faults, and the thresholds that were exceeded, in words."""
    failures = [
        f"{name}: the robot would have stopped for good: {fault}"
        for name, fault in summary.faults.items()
    ]
    if arguments.max_error is not None:
        broken = summary.drops.get("non_finite", 0) + summary.drops.get("inference_failed", 0)
        if broken:
            failures.append(f"{broken} observations got no usable answer: see drops")
        if summary.mean_error is None and not broken:
            raise ConfigurationError(
                "--max-error needs something to compare with: give --reference, or bags with "
                "actions"
            )
    measured = {
        "max_error": summary.mean_error,
        "max_latency_ms": None if summary.latency is None else summary.latency.p99,
        "max_seam_jump": summary.seam_maximum,
        "max_deadline_misses": summary.deadline_misses,
        "max_dropped": sum(summary.drops.values()),
        "max_trips": sum(summary.trips.values()),
    }
    for name, value in measured.items():
        limit = getattr(arguments, name)
        # Written so that a value that is not a number fails too.
        if limit is not None and value is not None and not value <= limit:
            failures.append(f"--{name.replace('_', '-')} {limit:g} is exceeded: {value:g}")
    return failures


def _to_json(results: "Sequence[ReplayResult]") -> dict[str, object]:
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.replay_result import summarize

    return {
        "summary": summarize(results).to_json(),
        "episodes": [one.to_json() for one in results],
        "machine": describe_machine(),
    }


def _write_page(
    arguments: argparse.Namespace,
    policy: "Policy",
    settings: "ReplaySettings",
    results: "Sequence[ReplayResult]",
) -> None:
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.replay_report import replay_report

    latency_ns, scheduler = settings.latency_ns, settings.scheduler
    facts = {
        "checkpoint": str(arguments.checkpoint),
        "reference": str(arguments.reference or "none"),
        "limits": str(arguments.limits or "none"),
        "simulated latency": "as measured" if latency_ns is None else f"{latency_ns / MS:g} ms",
        "least time between requests": f"{settings.request_interval_ns / MS:g} ms",
        "overlapping chunks": arguments.strategy,
        "a chunk's time to live": f"{scheduler.ttl_ns / MS:g} ms",
        "greatest age of an observation": f"{scheduler.max_observation_age_ns / MS:g} ms",
        **describe_machine(),
    }
    subtitle = f"{policy.model_id} · {policy.quant_tag} · {len(results)} episode(s)"
    replay_report("Replay", subtitle, results, facts).write(arguments.html)
    print(f"wrote {arguments.html}", file=sys.stderr)
