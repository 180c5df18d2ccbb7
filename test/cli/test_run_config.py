"""Options in a file, under the command line."""

import argparse
import re
from pathlib import Path

import pytest
import yaml

from qvla_ros.cli import quantize
from qvla_ros.cli.run_config import config_of, parse_over, save_config
from qvla_ros.errors import ConfigurationError

COMPLETE = {"model": "m", "bags": ["a", "b"], "out": "o", "bits": 4}


def parsed(tmp_path: Path, values: object, *words: str) -> argparse.Namespace:
    path = tmp_path / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    return parse_over(path, "quantize", parser, words)


def test_the_file_sets_what_the_command_line_leaves_open(tmp_path):
    found = parsed(tmp_path, {**COMPLETE, "frames": 16, "json": True, "step_weights": [1, 0.5]})
    assert (found.model, found.bags, found.out) == (Path("m"), [Path("a"), Path("b")], Path("o"))
    assert (found.bits, found.frames, found.probes, found.seed) == (4.0, 16, 8, 0)
    assert found.json is True
    assert found.step_weights == (1.0, 0.5)


def test_the_command_line_wins(tmp_path):
    found = parsed(tmp_path, {**COMPLETE, "frames": 16}, "--frames", "3", "other", "x", "y", "z")
    assert (found.frames, found.model, len(found.bags)) == (3, Path("other"), 3)


def test_zero_is_said_on_purpose(tmp_path):
    assert parsed(tmp_path, {**COMPLETE, "seed": 5}, "--seed", "0").seed == 0
    assert parsed(tmp_path, {**COMPLETE, "seed": 0}).seed == 0


def test_one_budget_on_the_command_line_replaces_that_of_the_file(tmp_path):
    found = parsed(tmp_path, COMPLETE, "--max-bytes", "1000")
    assert (found.bits, found.max_bytes) == (None, 1000)
    found = parsed(tmp_path, {**COMPLETE, "table": "t"}, "--plan", "p")
    assert (found.bits, found.table, found.plan) == (None, None, Path("p"))
    found = parsed(tmp_path, COMPLETE, "--table", "t")
    assert (found.bits, found.table) == (4.0, Path("t"))


def test_repeated_and_list_options_may_be_lists(tmp_path):
    values = {**COMPLETE, "camera": ["primary=/a", "wrist=/b"], "heldout": ["h", "i"]}
    found = parsed(tmp_path, values)
    assert found.camera == ["primary=/a", "wrist=/b"]
    assert found.heldout == [Path("h"), Path("i")]


REFUSED = {
    "an unknown option": ({"max_byte": 1}, "'max_byte'; the nearest is 'max_bytes'"),
    "an option as on the command line": ({"max-bytes": 1}, "the nearest is 'max_bytes'"),
    "a word for a number": ({"frames": "many"}, "invalid int value: 'many'"),
    "a number for a switch": ({"json": 1}, "json must be true or false"),
    "a switch for a number": ({"frames": True}, "frames cannot be True"),
    "a choice that is none": ({"activations": 4}, "invalid choice"),
    "options of another verb": ({"verb": "measure"}, "a configuration of qvla measure"),
    "a configuration in a configuration": ({"config": "x"}, "unknown option 'config'"),
    "a list": ("- 1", "options by name"),
    "no YAML": ("{", "cannot be read as YAML"),
    "nothing for what is needed": ({"out": None}, "out is given neither in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_name(tmp_path, case):
    values, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=r"run\.yaml") as error:
        parsed(tmp_path, {**COMPLETE, **values} if isinstance(values, dict) else values)
    assert message in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="absent"):
        parse_over(tmp_path / "absent", "quantize", argparse.ArgumentParser(), [])


def test_what_is_saved_beside_a_result_says_the_same_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = parsed(tmp_path, {**COMPLETE, "gripper_margin": 0.25, "widths": [0, 4, 8]})
    path = save_config(first, tmp_path / "result")
    assert path.name == "result.config.yaml"
    again = vars(parsed(tmp_path, path.read_text()))
    here = {name: [tmp_path / one for one in value] if name == "bags" else value
            for name, value in vars(first).items()}  # fmt: skip
    here |= {"model": tmp_path / "m", "out": tmp_path / "o"}
    assert again == here


def test_the_example_can_be_read(tmp_path):
    example = Path(__file__).parents[2] / "config" / "offline" / "quantize.yaml"
    found = parsed(tmp_path, example.read_text())
    assert (found.bits, len(found.bags), len(found.heldout)) == (4.0, 7, 5)
    commented = re.sub(r"^# (?=[a-z_]+: )", "", example.read_text(), flags=re.MULTILINE)
    everything = parsed(tmp_path, commented)
    assert everything.widths == (0, 2, 3, 4, 8, 16)
    assert everything.activations == "auto"


def test_help_needs_no_file():
    assert config_of(["--config", "x", "--help"]) is None
    assert config_of(["a", "--bits", "4", "--config=x"]) == Path("x")
    assert config_of(["a", "--config"]) is None
