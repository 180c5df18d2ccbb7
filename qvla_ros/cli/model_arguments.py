"""Arguments that several verbs share: the model folder, and bags of observations."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.observation import Observation


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model folder and how to read it."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="released OpenVLA-OFT folder")
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


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bags."""
    parser.add_argument(
        "bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder of one episode"
    )


def read_observations(bags: list[Path]) -> "list[Observation]":
    """All observations of all bags, in order."""
    from qvla_ros.evaluate.episode import read_episode

    return [observation for bag in bags for observation in read_episode(bag).observations]
