"""``qvla synthesize`` and what ``qvla inspect`` sees in its folders."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qvla_ros.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthesize") / "model"
    assert main(["synthesize", str(path), "--unnorm-key", "a", "--unnorm-key", "b"]) == 0
    return path


def answer(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_tells_family_sizes_shards_and_statistics(folder, capsys):
    facts = answer(capsys, "inspect", folder)
    assert facts["family"] == "openvla_oft"
    assert facts["statistics"] == ["a", "b"]
    assert facts["parameters"] == sum(facts["parameters_by_part"].values())
    assert list(facts["dtypes"]) == ["BF16"]
    assert len(facts["shards"]) == 4
    assert len(facts["side_files"]) == 2
    assert facts["dead_tensors"] == 43
    assert facts["targets"] == facts["live_targets"] + 8
    assert facts["missing"] == facts["unknown"] == facts["misshapen"] == []


def test_sizes_can_be_named_one_by_one(tmp_path, capsys):
    words = ("--llama-layers", 3, "--llama-width", 64, "--llama-hidden", 96, "--llama-heads", 2)
    answer(capsys, "synthesize", tmp_path / "model", *words, "--shards", 1, "--robot", "aloha")
    facts = answer(capsys, "inspect", tmp_path / "model")
    assert facts["live_targets"] == 2 * (1 + 2 * 4) + 3 * 7
    assert len(facts["shards"]) == 1


def test_inspect_names_what_is_missing_unknown_and_of_another_shape(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shard = copy / "model-00001-of-00004.safetensors"
    tensors = load_file(shard)
    first, second, *_ = sorted(tensors)
    tensors["stranger"] = tensors.pop(first)
    tensors[second] = tensors[second].flatten()[:1].clone()
    save_file(tensors, shard)
    index = copy / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"]["stranger"] = names["weight_map"].pop(first)
    index.write_text(json.dumps(names))
    facts = answer(capsys, "inspect", copy)
    assert (facts["missing"], facts["unknown"]) == ([first], ["stranger"])
    assert facts["misshapen"] == [second]


def test_inspect_refuses_a_corrupt_shard_by_name(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shard = copy / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(["inspect", str(copy)]) == 2
    assert shard.name in capsys.readouterr().err


def test_a_folder_that_exists_is_an_error_of_the_user(folder, capsys):
    assert main(["synthesize", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_an_error_of_the_user(capsys):
    assert main(["synthesize", "/proc/x/m"]) == 2
    assert "/proc/x/m cannot be written" in capsys.readouterr().err


def test_openvla_is_not_made_for_a_robot_of_other_statistics(tmp_path, capsys):
    words = ["synthesize", str(tmp_path / "x"), "--family", "openvla", "--robot", "aloha"]
    assert main(words) == 2
    assert "percentile" in capsys.readouterr().err


class HeaderOnly:
    """A shard whose tensors cannot be had."""

    def __init__(self, path: Path, framework: str) -> None:
        self._file = safe_open(path, framework)
        self.keys, self.get_slice = self._file.keys, self._file.get_slice

    def __enter__(self) -> "HeaderOnly":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_inspect_reads_no_weights(folder, monkeypatch, capsys):
    monkeypatch.setattr("qvla_ros.models.released_folder.safe_open", HeaderOnly)
    assert answer(capsys, "inspect", folder)["dead_tensors"] == 43
