"""A packed checkpoint through plain ``AutoModel.from_pretrained``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_model import tiny_checkpoint, tiny_observation
from transformers import AutoModel

from qvla_ros.errors import CheckpointError, ConfigurationError
from qvla_ros.hf import export_folder, register
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.policy.policy import load_policy

new = pytest.mark.skipif(int(transformers.__version__[0]) < 5, reason="transformers is too old")
old = pytest.mark.skipif(int(transformers.__version__[0]) >= 5, reason="transformers is new")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("packed"))


@new
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_folder_answers_bit_by_bit_what_the_checkpoint_answers(
    checkpoint, tmp_path, dtype
):
    folder = export_folder(checkpoint, tmp_path / "folder")
    register()
    model = AutoModel.from_pretrained(folder, dtype=dtype)
    policy = load_policy(checkpoint, compute_dtype=dtype)
    for seed in range(3):
        expected = policy.infer(tiny_observation(seed)).chunk.actions
        np.testing.assert_array_equal(
            model.policy.infer(tiny_observation(seed)).chunk.actions, expected
        )
        inputs = policy.processing.prepare(tiny_observation(seed))
        answer = model(inputs.pixels, inputs.token_ids, inputs.state)
        assert torch.equal(answer, policy.normalized_actions(inputs))


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(
    checkpoint, tmp_path, monkeypatch
):
    with pytest.raises(ConfigurationError, match="/proc/x/folder cannot be written"):
        export_folder(checkpoint, Path("/proc/x/folder"))

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qvla_ros.hf.atomic_file", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        export_folder(checkpoint, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@new
def test_its_weights_stay_packed(checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / "folder")
    register()
    register()
    model = AutoModel.from_pretrained(folder)
    layers = [one for one in model.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == 2 * (1 + 2 * 4) + 2 * 7
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert held < 1.2 * checkpoint.stat().st_size


@new
def test_a_tensor_that_the_file_lacks_is_named_instead_of_made_up(checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["tensors"]["float.stranger"] = ["float32", [3]]
    (folder / "config.json").write_text(json.dumps(config))
    register()
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'float\.stranger'"):
        AutoModel.from_pretrained(folder)


@new
def test_a_tensor_that_the_configuration_lacks_is_named(checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    gone = next(name for name in config["tensors"] if name.endswith("segment4.codes"))
    del config["tensors"][gone]
    (folder / "config.json").write_text(json.dumps(config))
    register()
    with pytest.raises(CheckpointError, match="does not name the tensor"):
        AutoModel.from_pretrained(folder)


def test_the_exported_weights_are_the_checkpoint_itself(checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / "folder")
    assert (folder / "model.safetensors").read_bytes() == checkpoint.read_bytes()
    assert load_policy(folder / "model.safetensors").model_id == "model"


def test_a_folder_that_exists_is_left_alone(checkpoint, tmp_path):
    with pytest.raises(ConfigurationError, match="exists already"):
        export_folder(checkpoint, tmp_path)


def test_a_corrupt_checkpoint_is_not_exported(checkpoint, tmp_path):
    broken = shutil.copy(checkpoint, tmp_path / "broken")
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        export_folder(broken, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@old
def test_an_old_transformers_is_told_what_to_install():
    with pytest.raises(ConfigurationError, match="install transformers 5 or later"):
        register()
