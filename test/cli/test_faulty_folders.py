"""What is wrong with a folder is said in one line, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from synthetic import synthetic_model

from qvla_ros.cli.main import USER_ERROR, main
from qvla_ros.models.synthetic_folder import write_synthetic_folder

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    return {
        family: write_synthetic_folder(root / family, synthetic_model(family))
        for family in ("openvla_oft", "openvla")
    }


def cut(folder: Path) -> None:
    shard = folder / SHARD
    shard.write_bytes(shard.read_bytes()[:-7])


def scribble(folder: Path) -> None:
    shard = folder / SHARD
    shard.write_bytes(b"\xff" * 16 + shard.read_bytes()[16:])


def behead(folder: Path) -> None:
    (folder / "action_head--150000_checkpoint.pt").unlink()


def smuggle(folder: Path) -> None:
    shard, index = folder / SHARD, folder / "model.safetensors.index.json"
    tensors = load_file(shard)
    tensors["language_model.stranger"] = next(iter(tensors.values())).clone()
    save_file(tensors, shard)
    names = json.loads(index.read_text())
    names["weight_map"]["language_model.stranger"] = shard.name
    index.write_text(json.dumps(names))


FAULTS = {
    "a shard that is cut": ("openvla", cut, (), SHARD),
    "a shard whose header is rubbish": ("openvla_oft", scribble, (), SHARD),
    "no action head": ("openvla_oft", behead, (), "exactly one action_head--*checkpoint.pt"),
    "statistics that are not there": (
        "openvla",
        lambda folder: None,
        ("--unnorm-key", "moon"),
        "'moon' is not one of them: choose one with --unnorm-key",
    ),
    "an unknown tensor": ("openvla_oft", smuggle, (), "language_model.stranger"),
}


@pytest.mark.parametrize("verb", ["measure", "quantize"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_one_clear_error(pristine, tmp_path, capsys, verb, fault):
    family, spoil, words, message = FAULTS[fault]
    folder = shutil.copytree(pristine[family], tmp_path / "model")
    spoil(folder)
    bag, out = tmp_path / "bag", tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    verb_words = [verb, str(folder), str(bag), "--robot", "libero", "--out", str(out), *words]
    budget = ["--bits", "4"] if verb == "quantize" else []
    assert main(verb_words + budget) == USER_ERROR
    told = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert len(told) == 1
    assert sorted(tmp_path.rglob("*")) == before
