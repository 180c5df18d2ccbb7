"""A tiny model folder and bags, for tests of whole verbs."""

from pathlib import Path

import numpy as np
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

PERIOD_NS = 50_000_000
START_NS = 1_000_000_000


def small_bag(path: Path, seed: int = 0) -> Path:
    """Six random observations."""
    observations = [tiny_observation(seed + i, START_NS + i * PERIOD_NS) for i in range(6)]
    episode = Episode.in_step(observations, np.zeros((6, 7), np.float32))
    write_episode(path, episode, BagLayout.of_robot(ROBOT_CONSTANTS["libero"]))
    return path


def small_inputs(folder: Path) -> Path:
    """``model``, ``bag`` and ``heldout`` in a folder."""
    tiny_folder(folder / "model")
    small_bag(folder / "bag")
    small_bag(folder / "heldout", 50)
    return folder
