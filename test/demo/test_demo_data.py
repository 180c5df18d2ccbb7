"""What git holds of the demo: the trained half of the model, and the bags."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from demo.closed_loop_runs import tasks_of
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.evaluate.rollout_record import read_records
from qvla_ros.models.folder_settings import processing_settings
from qvla_ros.models.openvla_oft import OpenVlaOftConfig
from qvla_ros.models.processing import Processing
from qvla_ros.models.registry import empty_network
from qvla_ros.models.released_folder import open_small_files
from qvla_ros.models.released_layout import read_llama, read_towers
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "model"
ROBOT = ROBOT_CONSTANTS["libero"]
LAYOUT = BagLayout.of_robot(ROBOT)
BAGS = sorted(path.name for path in (DEMO / "bags").iterdir() if path.is_dir())


def test_the_trained_half_and_the_pretrained_tower_make_the_whole_network():
    config = json.loads((MODEL / "config.json").read_text())
    shape = OpenVlaOftConfig(read_towers(config), read_llama(config), 2, 8, 7, 8)
    network = dict(empty_network(shape).named_parameters())
    with safe_open(MODEL / "trained.safetensors", framework="np") as file:
        trained = set(file.keys())
    missing = network.keys() - trained
    assert not trained - network.keys()
    assert all(name.startswith("vision_backbone.featurizer.") for name in missing)
    assert not any(name.startswith("vision_backbone.featurizer.") for name in trained)


def test_the_model_in_git_is_at_most_16_megabytes_and_the_bags_8():
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(MODEL) <= 16e6
    assert size(DEMO / "bags") <= 8e6


def test_there_are_bags_to_calibrate_with_and_bags_held_out():
    assert len([name for name in BAGS if name.startswith("calibration")]) == 7
    assert len([name for name in BAGS if name.startswith("heldout")]) == 5


@pytest.mark.parametrize("name", BAGS)
def test_a_demo_bag_is_an_episode_that_the_model_understands(name):
    episode = read_episode(DEMO / "bags" / name, LAYOUT)
    small = open_small_files(MODEL)
    processing = Processing(processing_settings(small, None, ROBOT), small.tokenizer_json)
    assert len(episode.observations) > 40
    assert not episode.drops
    assert set(np.diff(episode.ready_ns)) == {ROBOT.period_ns}
    assert episode.actions is not None
    np.testing.assert_array_equal(episode.actions.stamps_ns, episode.ready_ns)
    inputs = processing.prepare(episode.observations[0])
    assert inputs.pixels.shape == (1, 12, 112, 112)
    actions = processing.normalized_actions(episode.actions.values)
    assert np.abs(actions[:, :6]).mean() < 1
    assert set(np.unique(episode.actions.values[:, 6])) <= {0.0, 1.0}


@pytest.mark.parametrize("use", ["calibration", "heldout"])
def test_the_bags_know_every_task_of_the_policy(use):
    names = [name for name in BAGS if name.startswith(use)]
    tasks = {int(read_episode(DEMO / "bags" / name, LAYOUT).metadata["task"]) for name in names}
    assert tasks == set(tasks_of(DEMO / "training.json"))


def test_the_readme_says_what_the_kept_episodes_say():
    readme = (DEMO.parent / "README.md").read_text()
    for name in ("float", "packed"):
        records = read_records(DEMO / "closed_loop" / f"{name}.jsonl.xz")
        assert sorted((one.task, one.initial_state) for one in records) == [
            (task, state) for task in tasks_of(DEMO / "training.json") for state in range(50)
        ]
        assert f"**{sum(one.success for one in records)} of {len(records)}**" in readme
