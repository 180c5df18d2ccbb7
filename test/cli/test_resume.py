"""Killed at any stage and started again: the same bytes, or a refusal that says why."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from interrupted import run_killed
from small_inputs import small_bag, small_inputs

from qvla_ros.cli.main import main

NEVER = 1000
STAGES = 10  # of the tiny network
# Files before the codes: the purpose and an estimate; what it took, and the table twice; the
# plan and another estimate.
PURPOSE, SWEEPS, TABLE, PLAN = 2, STAGES, 3, 2
MEASURED = PURPOSE + SWEEPS + TABLE + PLAN
CODED = MEASURED + STAGES


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return small_inputs(tmp_path_factory.mktemp("resume"))


def words(inputs: Path, out: Path) -> list[str]:
    return [
        *("quantize", str(inputs / "model"), str(inputs / "bag"), "--out", str(out)),
        *("--heldout", str(inputs / "heldout")),
        *("--bits", "4", "--frames", "3", "--probes", "2", "--threads", "1", "--save-every", "0"),
    ]


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "policy"
    assert run_killed(words(inputs, out), NEVER) == 0
    return out


KILLS = {
    "in the middle of the sweep": [6],
    "when the table is written": [PURPOSE + SWEEPS + 2],
    "in the middle of the codes": [MEASURED + 5],
    "when the result is weighed": [CODED + 1],
    "when the result is written": [CODED + 3],
    "again and again": [1, 2, 9],
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_to_the_same_bytes(inputs, uninterrupted, tmp_path, capsys, kill):
    out = tmp_path / "policy"
    for writes in KILLS[kill]:
        assert run_killed(words(inputs, out), writes) == -signal.SIGKILL
    assert main(words(inputs, out)) == 0
    assert out.read_bytes() == uninterrupted.read_bytes()
    left = {path.name.removeprefix("policy") for path in tmp_path.iterdir()}
    kept = (".config.yaml", ".estimates.json", ".plan.safetensors", ".table.safetensors")
    assert left == {"", *kept}
    assert ("measuring" in capsys.readouterr().err) == (KILLS[kill][-1] <= PURPOSE + SWEEPS + 2)
    steps = json.loads((tmp_path / "policy.estimates.json").read_text())
    assert all({"estimated", "took"} == set(one) for one in steps.values())
    assert set(steps) == {"measuring", "quantizing"}


@pytest.fixture(scope="module")
def killed(inputs, tmp_path_factory) -> Path:
    """Inputs of their own, and an ``out`` whose work was killed in the middle of the sweep."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    assert run_killed(words(folder, folder / "policy"), 6) == -signal.SIGKILL
    return folder


def other_bag(folder: Path) -> None:
    shutil.rmtree(folder / "bag")
    small_bag(folder / "bag", 7)


def other_model(folder: Path) -> None:
    config = folder / "model" / "config.json"
    config.write_text(config.read_text() + " ")


CHANGES = {
    "a calibration bag": (other_bag, [], "bags[0] bag: "),
    "the model": (other_model, [], "model: "),
    "the budget": (None, ["--bits", "3"], "bits: 4.0 then, 3.0 now"),
    "the seed": (None, ["--seed", "1"], "seed: 0 then, 1 now"),
    "the metric": (None, ["--gripper-margin", "0.5"], "gripper_margin: None then, 0.5 now"),
    "the probes": (None, ["--probes", "3"], "probes: 2 then, 3 now"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_refused_with_the_reason(killed, tmp_path, capsys, change):
    edit, options, reason = CHANGES[change]
    folder = shutil.copytree(killed, tmp_path / "copy")
    if edit is not None:
        edit(folder)
    assert main([*words(folder, folder / "policy"), *options]) == 2
    told = capsys.readouterr().err
    assert f"holds unfinished work for something else ({reason}" in told
    assert not (folder / "policy").exists()


def test_a_folder_with_other_things_is_not_taken_for_work(inputs, tmp_path, capsys):
    precious = tmp_path / "home" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    given = [*words(inputs, tmp_path / "policy"), "--work", str(precious.parent)]
    assert main(given) == 2
    assert "neither empty nor a work folder" in capsys.readouterr().err
    assert precious.read_text() == "mine"


def test_a_budget_that_is_too_small_keeps_what_was_measured(inputs, tmp_path, capsys):
    given = words(inputs, tmp_path / "policy")
    given[given.index("--bits")], given[given.index("4")] = "--max-bytes", "1000"
    assert main(given) == 2
    assert "go on with --table" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy.table.safetensors"]


def test_the_saved_configuration_gives_the_same_bytes(uninterrupted, tmp_path):
    config = str(uninterrupted.with_name("policy.config.yaml"))
    assert main(["quantize", "--config", config, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == uninterrupted.read_bytes()
