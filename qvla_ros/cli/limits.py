"""``qvla limits``: what actions may be at most, measured on clean bags."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_checkpoint_arguments,
    load_policy_of,
    read_episodes,
)
from qvla_ros.cli.progress import Progress
from qvla_ros.errors import CalibrationError, ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    from qvla_ros.evaluate.limit_calibration import CalibratedLimits

HELP = "measure limits of actions on clean bags, with the false-positive rate of each limit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_bag_arguments(parser)
    parser.add_argument(
        "--robot",
        help="libero, aloha or bridge: limits of the recorded actions; or else of what "
        "the checkpoint says to every observation",
    )
    add_checkpoint_arguments(parser, required=False)
    parser.add_argument(
        "--margin",
        type=float,
        default=0.5,
        help="added on both sides of what was seen, as a share of its span, and to the greatest "
        "step as a share of it (default 0.5)",
    )
    parser.add_argument(
        "--wanted-rate",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of clean episodes that may have a chunk refused; it is said how many bags show it "
        "(default 0.05)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="YAML", help="file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes the limits, and prints them with their false-positive rates."""
    import yaml

    from qvla_ros.atomic_file import atomic_file
    from qvla_ros.evaluate.limit_calibration import calibrate_limits

    if not 0 < arguments.wanted_rate < 1:
        raise ConfigurationError(
            f"--wanted-rate must be between 0 and 1, not {arguments.wanted_rate}"
        )
    if not arguments.margin >= 0:
        raise ConfigurationError(f"--margin cannot be negative: {arguments.margin}")
    if (arguments.robot is None) == (arguments.checkpoint is None):
        raise ConfigurationError("give --checkpoint, or --robot for limits of recorded actions")
    recordings, names, origin = (
        _said(arguments) if arguments.checkpoint is not None else _recorded(arguments)
    )
    calibrated = calibrate_limits(recordings, names, arguments.margin)
    provenance = {**origin, "bags": [bag.name for bag in arguments.bags]}
    content = calibrated.to_yaml(provenance)
    with atomic_file(arguments.out) as file:
        file.write(yaml.safe_dump(content, sort_keys=False).encode())
    print(json.dumps(content, indent=2) if arguments.json else _table(calibrated))
    for line in _advice(calibrated, arguments.wanted_rate):
        print(line, file=sys.stderr)
    return 0


_Actions = tuple["list[np.ndarray]", tuple[str, ...], dict[str, str]]


def _said(arguments: argparse.Namespace) -> _Actions:
    """What a checkpoint says on each bag: chunks, names, origin."""
    import numpy as np

    policy = load_policy_of(arguments)
    episodes = read_episodes(arguments, policy.processing.settings.robot, with_actions=False)
    recordings = []
    with Progress(sum(len(one.observations) for one in episodes), "asking the policy") as progress:
        for episode in episodes:
            said = []
            for observation in episode.observations:
                said.append(policy.infer(observation).chunk.actions)
                progress.advance()
            recordings.append(np.stack(said))
    origin = {
        "source": "chunks of a checkpoint",
        "model_id": policy.model_id,
        "checkpoint_sha256": policy.checkpoint_sha256,
    }
    return recordings, tuple(policy.action_names), origin


def _recorded(arguments: argparse.Namespace) -> _Actions:
    """What was recorded on each bag: chunks, names, origin."""
    from qvla_ros.evaluate.limit_calibration import windows
    from qvla_ros.models.robot_constants import robot_constants

    robot = robot_constants(arguments.robot)
    recordings = []
    for bag, episode in zip(arguments.bags, read_episodes(arguments, robot), strict=True):
        if episode.actions is None:
            raise CalibrationError(
                f"bag {bag} holds no recorded actions: name their topic with --action-topic, or "
                "use --checkpoint"
            )
        recordings.append(windows(episode.actions, robot.horizon, robot.period_ns))
    return recordings, robot.action_names, {"source": "recorded actions", "robot": robot.name}


def _advice(calibrated: "CalibratedLimits", wanted_rate: float) -> list[str]:
    """How far the false-positive rate can be trusted, and what would make it better."""
    from qvla_ros.evaluate.rate_bound import trials_needed

    needed = trials_needed(wanted_rate)
    heldout = calibrated.heldout
    if heldout is None:
        return [
            "no false-positive rate: it needs two bags or more, each judged by the others; "
            f"{needed} to show that at most {wanted_rate:.2g} of clean episodes are refused"
        ]
    lines = [
        f"{heldout.refused} of {heldout.recordings} clean bags had a chunk refused: at 95 %, at "
        f"most {heldout.bound:.1%} of clean episodes will"
    ]
    if heldout.refused:
        margin = math.ceil(100 * heldout.least_margin) / 100
        lines.append(
            f"with --margin {margin:g} none of them would be refused; bags that show more of what "
            "the robot does are better than a wide margin"
        )
    if heldout.bound > wanted_rate:
        lines.append(
            f"to show a share of at most {wanted_rate:g} it takes {needed} clean bags, none refused"
        )
    return lines


def _table(calibrated: "CalibratedLimits") -> str:
    limits = calibrated.limits
    heldout = None if calibrated.heldout is None else calibrated.heldout.trips
    lines = [f"{'':<16}{'lower':>12}{'upper':>12}{'max step':>12}   false positives"]
    for index, name in enumerate(limits.names):
        bounds = (limits.lower[index], limits.upper[index], limits.max_step[index])
        rates = "not measured"
        if heldout is not None:
            rates = " ".join(f"{count / heldout.chunks:7.2%}" for count in heldout.by_limit[index])
        lines.append(f"{name:<16}" + "".join(f"{one:12.5g}" for one in bounds) + f"   {rates}")
    if heldout is not None:
        share = heldout.refused / heldout.chunks
        lines.append(
            f"of {heldout.chunks} chunks of bags that the limits were not made of, "
            f"{heldout.refused} ({share:.2%}) would be refused"
        )
    return "\n".join(lines)
