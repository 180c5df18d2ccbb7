"""The same verbs, from a folder to a replayed checkpoint, for every family of models."""

import json
from pathlib import Path

import numpy as np
import pytest

from qvla_ros.cli.main import main
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS, RobotConstants, single_step
from qvla_ros.observation import Observation

FAMILIES = {
    "openvla_oft": ROBOT_CONSTANTS["bridge"],
    "openvla": single_step(ROBOT_CONSTANTS["bridge"]),
}
FRAMES = 8


def write_bag(path: Path, robot: RobotConstants) -> None:
    random = np.random.default_rng(0)
    seen = [
        Observation(
            (index + 5) * robot.period_ns,
            {name: random.integers(0, 256, (40, 40, 3), np.uint8) for name in robot.image_names},
            random.normal(size=robot.state_dim).astype(np.float32),
            "pick up the bowl",
        )
        for index in range(FRAMES)
    ]
    actions = random.normal(size=(FRAMES, robot.action_dim)).astype(np.float32)
    episode = Episode.in_step(seen, actions)
    write_episode(path, episode, BagLayout.of_robot(robot))


def answer(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_synthetic_folder_is_measured_planned_quantized_verified_and_replayed(
    family, tmp_path, capsys
):
    model, bag, table, plan, out = (
        tmp_path / name for name in ("model", "bag", "table", "plan", "policy.qvla.safetensors")
    )
    write_bag(bag, FAMILIES[family])
    made = answer(capsys, "synthesize", model, "--family", family, "--robot", "bridge")
    shown = answer(capsys, "inspect", model)
    assert shown["family"] == made["family"] == family
    folder = (model, "--robot", "bridge")
    inputs = (model, bag, "--robot", "bridge", "--frames", 4)
    answer(capsys, "measure", *inputs, "--probes", 2, "--out", table)
    planned = answer(capsys, "plan", table, "--bits", 4, "--model", *folder, "--out", plan)
    assert 3.5 < planned["average_bits_per_weight"] <= 4
    answer(capsys, "quantize", *inputs, "--plan", plan, "--out", out)
    assert answer(capsys, "inspect", out)["family"] == family
    verified = answer(capsys, "verify", out, model, bag, "--robot", "bridge")
    assert verified["intact"]
    assert np.isfinite(verified["action_error_l1"])
    assert main(["replay", str(bag), "--checkpoint", str(out)]) == 0
