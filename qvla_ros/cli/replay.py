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
)
from qvla_ros.cli.progress import Progress
from qvla_ros.cli.robot_arguments import add_robot_arguments, serving_parameters
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.replay import ReplayedPolicy, ReplaySettings
    from qvla_ros.evaluate.replay_result import ReplayResult, ReplaySummary
    from qvla_ros.policy.policy import Policy
    from qvla_ros.policy.serving_settings import ServingParameters

HELP = "replay bags through a packed checkpoint: action error, latency, what was dropped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_bag_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--reference", type=Path, metavar="MODEL_FOLDER", help="float model to compare with"
    )
    add_robot_arguments(parser)
    parser.add_argument(
        "--latency-ms",
        type=float,
        help="simulated time of every inference; without it the time that it takes here",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with figures")
    _add_thresholds(parser)


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
    parameters = serving_parameters(arguments)
    arguments.image_orientations = parameters.image_orientations
    if any(parameters.state_names):
        arguments.state_names = parameters.state_names
    settings = _replay_settings(arguments, policy, parameters)
    results = _replay_all(arguments, policy, settings, reference)
    summary = summarize(results)
    if arguments.json:
        print(json.dumps(_to_json(results), indent=2, allow_nan=False))
    else:
        print(table_text(results))
    if arguments.html is not None:
        _write_page(arguments, policy, settings, parameters, results)
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


def _replay_settings(
    arguments: argparse.Namespace, policy: "Policy", parameters: "ServingParameters"
) -> "ReplaySettings":
    """How the robot is simulated, by its parameters and the policy's own times.

    Raises:
        ConfigurationError: The limits cannot be read, these actions must not be averaged, or the
            latency makes no sense.
    """
    from qvla_ros.evaluate.fidelity import Grippers
    from qvla_ros.evaluate.replay import ReplaySettings
    from qvla_ros.policy import serving_settings

    latency_ms = arguments.latency_ms
    if latency_ms is not None and not latency_ms >= 0:
        raise ConfigurationError(f"--latency-ms cannot be negative: {latency_ms}")
    # A file says all that the robot knows; without one the statistics tell the grippers.
    is_told = arguments.params_file is not None
    grippers = () if is_told else Grippers.of(policy.processing).dimensions
    return ReplaySettings(
        serving_settings.scheduler_settings(policy, parameters),
        serving_settings.request_interval(policy, parameters),
        None if latency_ms is None else round(latency_ms * MS),
        parameters.warmup_count,
        parameters.failure_limit,
        serving_settings.chunk_strategy(policy.action_names, policy.horizon, parameters, grippers),
    )


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
    parameters: "ServingParameters",
    results: "Sequence[ReplayResult]",
) -> None:
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.replay_report import replay_report

    latency_ns, scheduler = settings.latency_ns, settings.scheduler
    facts = {
        "checkpoint": str(arguments.checkpoint),
        "reference": str(arguments.reference or "none"),
        "parameter file": str(arguments.params_file or "none"),
        "limits": parameters.limits_file or "none",
        "beyond the limits": parameters.out_of_limits,
        "simulated latency": "as measured" if latency_ns is None else f"{latency_ns / MS:g} ms",
        "least time between requests": f"{settings.request_interval_ns / MS:g} ms",
        "overlapping chunks": parameters.chunk_strategy,
        "a chunk's time to live": f"{scheduler.ttl_ns / MS:g} ms",
        "greatest age of an observation": f"{scheduler.max_observation_age_ns / MS:g} ms",
        **describe_machine(),
    }
    subtitle = f"{policy.model_id} · {policy.quant_tag} · {len(results)} episode(s)"
    replay_report("Replay", subtitle, results, facts).write(arguments.html)
    print(f"wrote {arguments.html}", file=sys.stderr)
