"""``qvla replay``: recorded episodes through a packed checkpoint, as the robot would run it."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.progress import Progress
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.episode import EpisodeTopics
    from qvla_ros.evaluate.replay import ReplayedPolicy, ReplaySettings
    from qvla_ros.evaluate.replay_result import ReplayResult, ReplaySummary
    from qvla_ros.policy.policy import Policy

HELP = "replay bags through a packed checkpoint: action error, latency, what was dropped"
_MS = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder")
    parser.add_argument("--checkpoint", type=Path, required=True, help="packed checkpoint")
    parser.add_argument(
        "--reference", type=Path, metavar="MODEL_FOLDER", help="float model to compare with"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the network")
    _add_robot_arguments(parser)
    _add_topic_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page with figures")
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="L1",
        help="exit with 1 if the mean absolute error in normalised action space is greater: "
        "against the reference if there is one, else against the recorded actions",
    )


def _add_robot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latency-ms",
        type=float,
        help="simulated time of every inference; without it the time that it takes here",
    )
    parser.add_argument(
        "--ttl-ms", type=float, help="how old a chunk may get; without it the chunk's horizon"
    )
    parser.add_argument("--max-observation-age-ms", type=float, default=250.0)
    parser.add_argument("--warmup", type=int, default=2, help="inferences before the first")


def _add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-topic",
        action="append",
        default=[],
        metavar="NAME=TOPIC",
        help="topic of a camera; without it /camera/NAME/image_raw/compressed",
    )
    parser.add_argument("--state-topic", metavar="TOPIC")
    parser.add_argument("--instruction-topic", metavar="TOPIC")
    parser.add_argument("--action-topic", metavar="TOPIC")
    parser.add_argument(
        "--without-actions", action="store_true", help="the bags hold no recorded actions"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replays and prints; 1 if ``--max-error`` is exceeded, else 0."""
    # Here and not above, so that the help of the command line needs no torch.
    from qvla_ros.evaluate.figure_style import require_matplotlib
    from qvla_ros.evaluate.replay_report import table_text
    from qvla_ros.evaluate.replay_result import summarize
    from qvla_ros.policy.policy import float_policy, load_policy

    if arguments.html is not None:
        require_matplotlib()  # now rather than after minutes of replay
    _limit_threads(arguments.threads)
    policy = load_policy(arguments.checkpoint)
    reference = None
    if arguments.reference is not None:
        spoken = policy.processing.settings
        reference = float_policy(arguments.reference, spoken.unnorm_key, spoken.robot.name)
    results = _replay_all(arguments, policy, reference)
    if arguments.json:
        print(json.dumps(_to_json(results), indent=2, allow_nan=False))
    else:
        print(table_text(results))
    if arguments.html is not None:
        _write_page(arguments, policy, results)
    return _exit_code(summarize(results), arguments.max_error)


def _limit_threads(count: int | None) -> None:
    if count is None:
        return
    if count < 1:
        raise ConfigurationError(f"--threads must be at least 1, not {count}")
    import torch

    torch.set_num_threads(count)


def _exit_code(summary: "ReplaySummary", max_error: float | None) -> int:
    if max_error is None:
        return 0
    broken = summary.drops.get("non_finite", 0) + summary.drops.get("inference_failed", 0)
    if broken:
        print(f"{broken} observations got no usable answer: see drops", file=sys.stderr)
        return 1
    error = summary.reference_error or summary.recorded_error
    if error is None:
        raise ConfigurationError(
            "--max-error needs something to compare with: give --reference, or bags with actions"
        )
    # Written so that an error that is not a number fails too.
    if error.mean_l1 <= max_error:
        return 0
    print(f"error {error.mean_l1:.5f} is greater than {max_error:g}", file=sys.stderr)
    return 1


def _replay_all(
    arguments: argparse.Namespace, policy: "Policy", reference: "ReplayedPolicy | None"
) -> "list[ReplayResult]":
    from qvla_ros.evaluate.episode import read_episode
    from qvla_ros.evaluate.replay import replay

    settings = _settings(arguments, policy)
    topics = _topics(arguments, policy.image_names)
    results = []
    for bag in arguments.bags:
        episode = read_episode(bag, topics)
        with Progress(len(episode.observations), f"replay {bag.name}") as progress:
            results.append(replay(policy, episode, settings, reference, progress.set))
    return results


def _settings(arguments: argparse.Namespace, policy: "Policy") -> "ReplaySettings":
    from qvla_ros.evaluate.replay import ReplaySettings
    from qvla_ros.policy.chunk_scheduler import SchedulerSettings

    _check_limits(arguments)
    horizon_ns = policy.horizon * policy.period_ns
    ttl_ns = horizon_ns if arguments.ttl_ms is None else round(arguments.ttl_ms * _MS)
    latency_ms = arguments.latency_ms
    return ReplaySettings(
        SchedulerSettings(ttl_ns, round(arguments.max_observation_age_ms * _MS)),
        latency_ns=None if latency_ms is None else round(latency_ms * _MS),
        warmup_count=arguments.warmup,
    )


def _check_limits(arguments: argparse.Namespace) -> None:
    for name in ("latency_ms", "warmup"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise ConfigurationError(f"--{name.replace('_', '-')} cannot be negative: {value}")
    for name in ("ttl_ms", "max_observation_age_ms"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be positive, not {value}")


def _topics(arguments: argparse.Namespace, image_names: Sequence[str]) -> "EpisodeTopics":
    from qvla_ros.evaluate.episode import EpisodeTopics

    images = {name: f"/camera/{name}/image_raw/compressed" for name in image_names}
    for assignment in arguments.image_topic:
        name, equals, topic = assignment.partition("=")
        if not equals or name not in images:
            raise ConfigurationError(
                f"--image-topic {assignment!r} must be NAME=TOPIC with one of the cameras "
                f"{', '.join(images)}"
            )
        images[name] = topic
    default = EpisodeTopics()
    action = None if arguments.without_actions else arguments.action_topic or default.action
    return EpisodeTopics(
        images=images,
        state=arguments.state_topic or default.state,
        action=action,
        instruction=arguments.instruction_topic or default.instruction,
    )


def _to_json(results: "Sequence[ReplayResult]") -> dict[str, object]:
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.replay_result import summarize

    return {
        "summary": summarize(results).to_json(),
        "episodes": [one.to_json() for one in results],
        "machine": describe_machine(),
    }


def _write_page(
    arguments: argparse.Namespace, policy: "Policy", results: "Sequence[ReplayResult]"
) -> None:
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.replay_report import replay_report

    scheduler = asdict(_settings(arguments, policy).scheduler)
    latency = arguments.latency_ms
    facts = {
        "checkpoint": str(arguments.checkpoint),
        "reference": str(arguments.reference or "none"),
        "simulated latency": "as measured" if latency is None else f"{latency:g} ms",
        **{name: f"{value / _MS:g} ms" for name, value in scheduler.items()},
        **describe_machine(),
    }
    subtitle = f"{policy.model_id} · {policy.quant_tag} · {len(results)} episode(s)"
    replay_report("Replay", subtitle, results, facts).write(arguments.html)
    print(f"wrote {arguments.html}", file=sys.stderr)
