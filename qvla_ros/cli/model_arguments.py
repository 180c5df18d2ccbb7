"""Arguments that several verbs share: a model folder, a checkpoint, and bags."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.robot_arguments import serving_parameters
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.bag_layout import BagLayout
    from qvla_ros.evaluate.episode import Episode, Observations
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.models.robot_constants import RobotConstants
    from qvla_ros.policy.frame_sync import SyncSettings
    from qvla_ros.policy.policy import Policy

MS = 1_000_000
_LARGE_BYTES = 2_000_000_000  # of a folder, above which reading it takes seconds


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model folder and how to read it."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="released OpenVLA or OpenVLA-OFT folder"
    )
    parser.add_argument(
        "--unnorm-key", help="data set whose statistics are used; needed if there are several"
    )
    parser.add_argument(
        "--robot", help="libero, aloha or bridge; found by the sizes of the action head if absent"
    )


def load_model_of(arguments: argparse.Namespace) -> "LoadedModel":
    """Load the float network that the arguments name."""
    from qvla_ros.models.registry import load_model

    return load_model(arguments.model, arguments.unnorm_key, arguments.robot)


def open_model_of(arguments: argparse.Namespace) -> "LoadedModel":
    """The float network that the arguments name, its weights left in the folder until needed."""
    from qvla_ros.models.registry import open_model

    size = sum(
        file.stat().st_size for file in arguments.model.glob("*.safetensors") if file.is_file()
    )
    if size > _LARGE_BYTES:
        print(f"{arguments.model}: checking all {size / 1e9:.1f} GB", file=sys.stderr, flush=True)
    return open_model(arguments.model, arguments.unnorm_key, arguments.robot)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Declare a packed checkpoint and how to run it."""
    parser.add_argument("--checkpoint", type=Path, required=required, help="packed checkpoint")
    parser.add_argument("--threads", type=int, help="CPU threads of the network")


def load_policy_of(arguments: argparse.Namespace) -> "Policy":
    """Load the packed checkpoint that the arguments name, on so many threads as they say."""
    from qvla_ros.policy.policy import load_policy

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ConfigurationError(f"--threads must be at least 1, not {arguments.threads}")
        import torch

        torch.set_num_threads(arguments.threads)
    return load_policy(arguments.checkpoint)


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bags, and what stands where in them."""
    parser.add_argument(
        "bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder of one episode"
    )
    add_topic_arguments(parser)


def add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what stands where in the bags, which the verb names as ``arguments.bags``."""
    group = parser.add_argument_group(
        "what stands where in the bags", "the defaults are the topics of the node"
    )
    group.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=TOPIC",
        help="topic of a camera, raw or compressed (default /camera/NAME/image_raw/compressed)",
    )
    group.add_argument(
        "--image-orientations",
        type=_names,
        metavar="HOW,...",
        help="as_is, rotate_180, mirror (left and right) or flip (top and bottom): one word for "
        "all cameras, or one for each; how the model wants the images turned (default as_is)",
    )
    group.add_argument("--state-topic", metavar="TOPIC", help="JointState (default /robot/state)")
    group.add_argument(
        "--state-names",
        type=_names,
        metavar="NAME,...",
        help="what to pick from the state, in the model's order (default: the model's names)",
    )
    group.add_argument(
        "--pose-topic",
        metavar="TOPIC",
        help="PoseStamped, for names that begin with 'pose.' (default /robot/pose)",
    )
    group.add_argument("--instruction-topic", metavar="TOPIC", help="default /instruction")
    group.add_argument("--instruction", metavar="TEXT", help="the task, if no topic tells it")
    group.add_argument(
        "--action-topic", metavar="TOPIC", help="recorded actions, JointState (/robot/action)"
    )
    group.add_argument(
        "--action-names",
        type=_names,
        metavar="NAME,...",
        help="what to pick from the recorded actions (default: the model's names)",
    )
    group.add_argument(
        "--arrival",
        choices=("recorded", "stamped"),
        default="recorded",
        help="when messages came: when they were recorded, or when their stamps say",
    )
    _add_limits(group)


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-skew-ms",
        type=float,
        metavar="MS",
        help="how much older than the first camera's image another input may be (default 50)",
    )
    group.add_argument(
        "--max-observation-age-ms",
        type=float,
        metavar="MS",
        help="an observation older than this is not used (default 250)",
    )
    group.add_argument(
        "--sync-wait-ms",
        type=float,
        metavar="MS",
        help="how long to wait for inputs as new as the first camera's image (default 20)",
    )
    group.add_argument(
        "--future-tolerance-ms",
        type=float,
        metavar="MS",
        help="how far a stamp may lie after the time of arrival (default 20)",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_observations(arguments: argparse.Namespace, robot: "RobotConstants") -> "Observations":
    """All observations of all bags, in order, decoded when they are asked for."""
    from qvla_ros.evaluate.episode import Observations

    episodes = read_episodes(arguments, robot, with_actions=False)
    return Observations.of_all(episode.observations for episode in episodes)


def read_episodes(
    arguments: argparse.Namespace, robot: "RobotConstants", with_actions: bool = True
) -> "list[Episode]":
    """The bags, one episode each; tells on standard error what gave no observation.

    Args:
        arguments: Those of ``add_topic_arguments``, and ``bags``.
        robot: Names of cameras, state and actions.
        with_actions: Whether recorded actions are wanted, where there are any.
    """
    from qvla_ros.evaluate.episode import read_episode

    layout = bag_layout(arguments, robot)
    if not with_actions:
        layout = dataclasses.replace(layout, action=None)
    settings = sync_settings(arguments)
    episodes = []
    for bag in arguments.bags:
        episode = read_episode(bag, layout, settings)
        if episode.drops:
            found = ", ".join(f"{reason} {count}" for reason, count in episode.drops.items())
            print(f"{bag}: {len(episode.observations)} observations; {found}", file=sys.stderr)
        episodes.append(episode)
    return episodes


def bag_layout(arguments: argparse.Namespace, robot: "RobotConstants") -> "BagLayout":
    """Which topics the arguments name.

    Raises:
        ConfigurationError: A camera is none of the robot's, or names are too many or too few.
    """
    from qvla_ros.evaluate.bag_layout import BagLayout
    from qvla_ros.policy.serving_settings import by_camera

    default = BagLayout.of_robot(robot)
    told = serving_parameters(arguments).image_orientations
    return BagLayout(
        images=_cameras(arguments.camera, dict(default.images)),
        state_names=_as_many("--state-names", arguments.state_names, robot.state_names),
        action_names=_as_many("--action-names", arguments.action_names, robot.action_names),
        state=arguments.state_topic or default.state,
        pose=arguments.pose_topic or default.pose,
        action=arguments.action_topic or default.action,
        require_actions=arguments.action_topic is not None,
        instruction=arguments.instruction_topic or default.instruction,
        instruction_text=arguments.instruction,
        arrival_from_stamps=arguments.arrival == "stamped",
        orientations=by_camera("--image-orientations", told, robot.image_names),
    )


def sync_settings(arguments: argparse.Namespace) -> "SyncSettings":
    """The limits in time that the arguments name; the node's defaults otherwise."""
    from qvla_ros.policy import serving_settings

    return serving_settings.sync_settings(serving_parameters(arguments))


def _cameras(assignments: list[str], images: dict[str, str]) -> dict[str, str]:
    for assignment in assignments:
        name, equals, topic = assignment.partition("=")
        if not equals or not topic or name not in images:
            raise ConfigurationError(
                f"--camera {assignment!r} must be NAME=TOPIC with one of the cameras "
                f"{', '.join(images)}"
            )
        images[name] = topic
    return images


def _as_many(
    option: str, names: tuple[str, ...] | None, wanted: tuple[str, ...]
) -> tuple[str, ...]:
    if names is None:
        return wanted
    if len(names) != len(wanted):
        raise ConfigurationError(
            f"{option} has {len(names)} names, the model wants {len(wanted)} ({', '.join(wanted)})"
        )
    return names
