"""The verbs of the offline tool, from a model folder and bags to a verified checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.cli.main import main
from qvla_ros.evaluate.episode import Episode, write_episode
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

PERIOD_NS = 50_000_000
START_NS = 1_000_000_000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[str, str]:
    """A model folder and a bag."""
    folder = tmp_path_factory.mktemp("verbs")
    observations = [tiny_observation(i, START_NS + i * PERIOD_NS) for i in range(6)]
    robot = ROBOT_CONSTANTS["libero"]
    episode = Episode(
        observations,
        np.zeros((6, 7), np.float32),
        PERIOD_NS,
        {},
        robot.state_names,
        robot.action_names,
    )
    write_episode(folder / "bag", episode)
    return str(tiny_folder(folder / "model")), str(folder / "bag")


@pytest.fixture(scope="module")
def table(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("table") / "table.safetensors"
    model, bag = inputs
    assert main(["measure", model, bag, "--out", str(out), "--frames", "3", "--probes", "2"]) == 0
    return out


def answer(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_verb_has_help(capsys):
    for verb in ("inspect", "measure", "plan", "quantize", "verify", "replay", "rollout"):
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
        assert f"qvla {verb}" in capsys.readouterr().out


def test_inspect_counts_what_is_in_a_folder(inputs, capsys):
    facts = answer(capsys, "inspect", inputs[0])
    assert facts["kind"] == "model folder"
    assert facts["family"] == "openvla_oft"
    assert facts["live_targets"] == 2 * (1 + 2 * 4) + 2 * 7
    assert facts["targets"] == facts["live_targets"] + 2 * 4
    assert facts["missing_tensors"] == facts["unknown_tensors"] == 0


def test_the_stages_lead_to_a_checkpoint_that_verifies(inputs, table, tmp_path, capsys):
    model, bag = inputs
    plan, checkpoint = tmp_path / "plan", tmp_path / "policy.qvla.safetensors"
    planned = answer(capsys, "plan", table, "--bits", 8, "--out", plan)
    assert planned["average_bits_per_weight"] <= 8
    written = answer(capsys, "quantize", model, "--plan", plan, "--out", checkpoint)
    assert written["file_bytes"] == checkpoint.stat().st_size
    facts = answer(capsys, "inspect", checkpoint, "--kernels")
    assert facts["sha256"] == written["sha256"]
    assert all("cpu_chunked" in text for text in facts["kernels"].values())
    verified = answer(capsys, "verify", checkpoint, model, bag)
    assert verified["intact"]
    assert 0 < verified["action_error_l1"] < 1


def test_one_command_does_all_stages(inputs, tmp_path, capsys):
    model, bag = inputs
    out = tmp_path / "policy"
    words = ("quantize", model, "--bags", bag, "--bits", 4, "--frames", 2, "--out", out)
    assert answer(capsys, *words)["average_bits_per_weight"] <= 4


def test_more_bits_verify_better(inputs, table, tmp_path, capsys):
    model, bag = inputs
    errors = []
    for bits in (2, 8):
        plan, out = tmp_path / f"plan{bits}", tmp_path / f"policy{bits}"
        answer(capsys, "plan", table, "--uniform", bits, "--out", plan)
        answer(capsys, "quantize", model, "--plan", plan, "--out", out)
        errors.append(answer(capsys, "verify", out, model, bag)["action_error_l1"])
    assert errors[0] > errors[1]


def test_verify_fails_by_its_threshold(inputs, table, tmp_path, capsys):
    model, bag = inputs
    plan, out = str(tmp_path / "plan"), str(tmp_path / "policy")
    assert main(["plan", str(table), "--uniform", "2", "--out", plan]) == 0
    assert main(["quantize", model, "--plan", plan, "--out", out]) == 0
    assert main(["verify", out, model, bag, "--max-error", "1e-9"]) == 1
    assert "> 1e-09" in capsys.readouterr().err


def test_measure_prints_the_rank_correlation(inputs, tmp_path, capsys):
    model, bag = inputs
    words = ("measure", model, bag, "--out", tmp_path / "t", "--frames", 3, "--exact-rows", 12)
    facts = answer(capsys, *words, "--exact-frames", 2)
    assert set(facts["exact"]["spearman_by_width"]) == {"2", "4", "8"}


FAULTS = {
    "no such model": (["inspect", "nowhere"], "no such file"),
    "not a bag": (["measure", "{model}", "{model}", "--out", "{tmp}/t"], "model"),
    "too few frames": (
        ["measure", "{model}", "{bag}", "--out", "{tmp}/t", "--frames", "99"],
        "--frames",
    ),
    "no such table": (["plan", "{tmp}/absent", "--bits", "4"], "absent"),
    "a budget of 17 bits": (["plan", "{table}", "--bits", "17"], "17"),
    "bytes without a model": (["plan", "{table}", "--max-bytes", "9"], "--model"),
    "too few bytes": (
        ["plan", "{table}", "--max-bytes", "9", "--model", "{model}"],
        "too small",
    ),
    "no budget": (["quantize", "{model}", "--bags", "{bag}", "--out", "{tmp}/c"], "either"),
    "a table as a plan": (
        ["quantize", "{model}", "--plan", "{table}", "--out", "{tmp}/c"],
        "not a plan file",
    ),
    "a folder as a checkpoint": (["verify", "{model}", "{model}", "{bag}"], "not a regular file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_user_is_one_clear_line(inputs, table, tmp_path, capsys, fault):
    words, culprit = FAULTS[fault]
    places = {"model": inputs[0], "bag": inputs[1], "table": table, "tmp": tmp_path}
    assert main([word.format(**places) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert culprit in lines[-1]
    assert lines[-1].startswith("qvla ")
    assert not list(tmp_path.iterdir())
