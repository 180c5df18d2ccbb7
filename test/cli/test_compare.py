"""``qvla compare`` from bags to a table, and after an interruption."""

import argparse
import json

import numpy as np
import pytest
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.cli import compare
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

PERIOD_NS = 50_000_000
WORDS = ("--frames", 3, "--probes", 2, "--heldout-frames", 6, "--budgets", 8, 4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[str, str, str, str]:
    """A model folder, two bags to calibrate on, one that is held out."""
    folder = tmp_path_factory.mktemp("compare")
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    for number, name in enumerate(("first", "second", "held")):
        seen = [tiny_observation(10 * number + i, (i + 1) * PERIOD_NS) for i in range(6)]
        write_episode(folder / name, Episode.in_step(seen, np.zeros((6, 7), np.float32)), layout)
    model = tiny_folder(folder / "model")
    return str(model), *(str(folder / name) for name in ("first", "second", "held"))


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def begun(inputs, out, *words: object) -> argparse.Namespace:
    model, first, second, held = inputs
    methods = ("--methods", "bf16", "rtn", "gptq", "ours")
    return parsed(model, first, second, "--heldout", held, "--out", out, *WORDS, *methods, *words)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert compare.run(begun(inputs, out)) == 0
    return out


def test_the_folder_has_table_figures_page_and_json(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"compare.json", "compare.txt", "compare.svg", "compare.png", "compare.html"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    cells = json.loads((finished / "compare.json").read_text())["cells"]
    assert [(one["method"], one["bits"]) for one in cells] == [
        ("bf16", 16), ("rtn", 8), ("rtn", 4), ("gptq", 8), ("gptq", 4), ("ours", 8), ("ours", 4)
    ]  # fmt: skip
    for one in cells:
        assert one["file_bytes"] <= one["budget_bytes"]
        assert one["error"]["low"] <= one["error"]["mean"] <= one["error"]["high"]
        assert one["kernels"]
    assert cells[1]["file_bytes"] == cells[1]["budget_bytes"]
    assert "gptq" in (finished / "compare.txt").read_text()


def test_finished_cells_are_not_measured_again(inputs, finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    assert compare.run(begun(inputs, finished, "--json")) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    assert before == after
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 7


def test_a_lost_cell_comes_back_the_same(inputs, finished):
    lost = finished / "cells" / "ours@4.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    assert compare.run(begun(inputs, finished)) == 0
    after = json.loads(lost.read_text())
    for name in before.keys() - {"quantize_seconds", "evaluate_seconds"}:
        assert before[name] == after[name], name


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--frames", 4), "calibration frames"),
        (("--heldout-frames", 5), "held-out frames"),
        (("--seed", 1), "seed"),
    ],
)
def test_a_changed_question_is_refused_with_the_reason(inputs, finished, words, reason):
    with pytest.raises(ConfigurationError, match=reason):
        compare.run(begun(inputs, finished, *words))


def test_a_bag_cannot_be_calibrated_on_and_held_out(inputs, tmp_path):
    model, first, *_ = inputs
    with pytest.raises(ConfigurationError, match="first"):
        compare.run(parsed(model, first, "--heldout", first, "--out", tmp_path))


def test_an_unknown_method_is_named(inputs, tmp_path):
    with pytest.raises(ConfigurationError, match="magic"):
        compare.run(begun(inputs, tmp_path, "--methods", "magic"))


def test_two_processes_find_what_one_finds(inputs, finished, tmp_path):
    words = ("--methods", "rtn", "gptq", "--jobs", 2)
    assert compare.run(begun(inputs, tmp_path, *words)) == 0
    cells = json.loads((tmp_path / "compare.json").read_text())["cells"]
    alone = {
        (one["method"], one["bits"]): one
        for one in json.loads((finished / "compare.json").read_text())["cells"]
    }
    assert len(cells) == 4
    for one in cells:
        other = alone[one["method"], one["bits"]]
        assert one["checkpoint_sha256"] == other["checkpoint_sha256"]
