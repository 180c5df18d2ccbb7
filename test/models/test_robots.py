"""What the robots' tables decide: sizes, cameras, and which statistics stand for -1 and 1."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import synthetic_model

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.models.registry import load_model
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS, RobotConstants, single_step
from qvla_ros.models.synthetic_folder import write_synthetic_folder

SIZES = {"libero": (8, 7, 8, 2), "aloha": (25, 14, 14, 3), "bridge": (5, 7, 7, 1)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("robots")
    return {
        name: write_synthetic_folder(root / name, synthetic_model("openvla_oft", name))
        for name in SIZES
    }


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_the_head_tell_the_robot(folders, name):
    model = load_model(folders[name])
    robot = model.processing.settings.robot
    assert robot.name == name
    sizes = (robot.horizon, robot.action_dim, robot.state_dim, len(robot.image_names))
    assert sizes == SIZES[name]
    question = golden_observation(robot.image_names, robot.state_dim)
    actions = model.network(model.processing.prepare(question))
    assert actions.shape == (1, robot.horizon, robot.action_dim)


@pytest.mark.parametrize(("name", "ends"), [("libero", ("q01", "q99")), ("aloha", ("min", "max"))])
def test_minus_one_and_one_stand_for_the_ends_of_the_robots_statistics(folders, name, ends):
    processing = load_model(folders[name]).processing
    statistics = json.loads((folders[name] / "dataset_statistics.json").read_text())["synthetic"]
    for sign, end in zip((-1, 1), ends, strict=True):
        action = processing.robot_actions(np.full((1, processing.settings.robot.action_dim), sign))
        # The last dimension is a gripper, which the mask leaves alone.
        np.testing.assert_allclose(action[0, :-1], statistics["action"][end][:-1], rtol=1e-6)
        assert action[0, -1] == sign
        state = processing.normalized_state(np.float32(statistics["proprio"][end]))
        np.testing.assert_allclose(state, sign, atol=1e-6)


def test_openvla_sees_one_image_no_state_and_plans_one_action():
    constants = single_step(ROBOT_CONSTANTS["libero"])
    assert constants == replace(
        ROBOT_CONSTANTS["libero"], horizon=1, state_names=(), image_names=("primary",)
    )


def test_sizes_of_no_robot_are_refused_with_the_way_out(tmp_path):
    robot: RobotConstants = replace(ROBOT_CONSTANTS["libero"], state_names=("x",))
    model = replace(synthetic_model("openvla_oft"), robot=robot)
    with pytest.raises(UnsupportedModelError, match=r"7 action and 1 state dimensions.*--robot"):
        load_model(write_synthetic_folder(tmp_path / "odd", model))


def test_several_data_sets_need_a_key_and_one_does_not(tmp_path):
    model = replace(synthetic_model("openvla_oft"), unnorm_keys=("first", "second"))
    folder = write_synthetic_folder(tmp_path / "two", model)
    with pytest.raises(
        UnsupportedModelError, match=r"first, second; none was named.*--unnorm-key"
    ):
        load_model(folder)
    assert load_model(folder, "second").processing.settings.unnorm_key == "second"
