"""Loading a model folder: strict about every file, key and shape."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.families import config_from_json
from qvla_ros.models.processing import stack_inputs
from qvla_ros.models.registry import load_model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_shard(folder: Path, change) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    index = folder / "model.safetensors.index.json"
    other = load_file(folder / "model-00002-of-00002.safetensors")
    names = dict.fromkeys(tensors, path.name) | dict.fromkeys(
        other, "model-00002-of-00002.safetensors"
    )
    index.write_text(json.dumps({"weight_map": names}))


def edit_statistics(folder: Path, change) -> None:
    edit_json(folder / "dataset_statistics.json", lambda s: change(s["tiny"]))


def add_unnamed_tensor(shard: Path) -> None:
    save_file({**load_file(shard), "stowaway": torch.zeros(1)}, shard)


def leave_only_an_adapter(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "lora_adapter").mkdir()


def take_the_head_away(folder: Path) -> None:
    for file in folder.glob("*.pt"):
        file.unlink()


def cut_the_end(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def link_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "blobs" / "absent")


def with_norm_stats(value):
    def change(folder: Path) -> None:
        (folder / "dataset_statistics.json").unlink()
        edit_json(folder / "config.json", lambda c: c.update(norm_stats=value))

    return change


def with_llama(**keys):
    return lambda f: edit_json(f / "config.json", lambda c: c["text_config"].update(keys))


def test_a_folder_in_the_released_layout_gives_finite_actions(pristine):
    model = load_model(pristine)
    actions = model.network(model.processing.prepare(tiny_observation()))
    assert actions.shape == (1, 8, 7)
    assert actions.dtype == torch.float32
    assert torch.isfinite(actions).all()


def test_what_never_runs_is_not_built(pristine):
    names = dict(load_model(pristine).network.named_parameters())
    dead = ("lm_head", "attn_pool", "featurizer.norm", "featurizer.blocks.2.")
    assert not [name for name in names if any(mark in name for mark in dead)]


def test_every_target_of_towers_and_language_model_is_a_linear_layer(pristine):
    layers = load_model(pristine).network.linear_layers()
    assert len(layers) == 2 * (1 + 2 * 4) + 2 * 7
    assert {layer.part for layer in layers} == {"vision", "language"}


def test_a_black_and_a_white_image_give_different_actions(pristine):
    model = load_model(pristine)
    answers = []
    for level in (0, 255):
        images = {n: np.full((40, 40, 3), level, np.uint8) for n in ("primary", "wrist")}
        observation = replace(tiny_observation(), images=images)
        answers.append(model.network(model.processing.prepare(observation)))
    assert (answers[0] - answers[1]).abs().max() > 1e-3


def test_the_order_of_the_cameras_matters(pristine):
    model = load_model(pristine)
    observation = tiny_observation()
    swapped = replace(
        observation,
        images={"primary": observation.images["wrist"], "wrist": observation.images["primary"]},
    )
    answers = [model.network(model.processing.prepare(one)) for one in (observation, swapped)]
    assert (answers[0] - answers[1]).abs().max() > 1e-4


def test_a_batch_gives_the_answers_of_its_frames(pristine):
    model = load_model(pristine)
    frames = [model.processing.prepare(tiny_observation(seed)) for seed in range(3)]
    together = model.network(stack_inputs(frames))
    for frame, answer in zip(frames, together, strict=True):
        torch.testing.assert_close(model.network(frame)[0], answer, rtol=1e-4, atol=1e-5)


def test_the_rotary_table_survives_loading(pristine):
    llama = load_model(pristine).network.llama
    assert not llama.rotary_emb.inv_freq.is_meta
    assert llama.rotary_emb.inv_freq.dtype == torch.float32


FAULTS = {
    "no such folder": (shutil.rmtree, "is not a folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "another model type": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(model_type="llava")),
        "'llava'",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "no shards": (
        lambda f: (f / "model.safetensors.index.json").unlink(),
        "model.safetensors.index.json",
    ),
    "a shard is gone": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002",
    ),
    "a shard is cut": (
        lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"\x08"),
        "model-00001-of-00002",
    ),
    "an unknown tensor": (
        lambda f: edit_shard(f, lambda t: t.update(surprise=torch.zeros(1))),
        "unknown tensor.*'surprise'",
    ),
    "a missing tensor": (
        lambda f: edit_shard(f, lambda t: t.pop("projector.fc1.weight", None) or t.popitem()),
        "missing tensor",
    ),
    "another shape": (
        lambda f: edit_shard(f, lambda t: t.update({next(iter(t)): torch.zeros(3, 3, 3)})),
        "has shape",
    ),
    "no action head": (
        lambda f: (f / "action_head--7_checkpoint.pt").unlink(),
        "exactly one action_head",
    ),
    "two action heads": (
        lambda f: shutil.copy(
            f / "action_head--7_checkpoint.pt", f / "action_head--8_checkpoint.pt"
        ),
        "exactly one action_head",
    ),
    "a corrupt projector": (
        lambda f: (f / "proprio_projector--7_checkpoint.pt").write_bytes(b"rubbish"),
        "proprio_projector--7",
    ),
    "a FiLM folder": (
        lambda f: (f / "vision_backbone--7_checkpoint.pt").write_bytes(b""),
        "FiLM",
    ),
    "an adapter without its model": (leave_only_an_adapter, "merge it into the base model"),
    "neither a head nor action bins": (take_the_head_away, "no family that is known"),
    "a shard without its end": (
        lambda f: cut_the_end(f / "model-00002-of-00002.safetensors"),
        "cannot read the shard .*model-00002-of-00002",
    ),
    "whole numbers for weights": (
        lambda f: edit_shard(
            f, lambda t: t.update({n: v.to(torch.int8) for n, v in list(t.items())[:1]})
        ),
        "stored as I8",
    ),
    "a diffusion head": (
        lambda f: (f / "noisy_action_projector--7_checkpoint.pt").write_bytes(b""),
        "diffusion",
    ),
    "statistics of another size": (
        lambda f: edit_json(
            f / "dataset_statistics.json", lambda s: s["tiny"]["proprio"].update(q01=[0.0])
        ),
        "state_low has 1 entries",
    ),
    "a mask of another length": (
        lambda f: edit_statistics(f, lambda s: s["action"].update(mask=[True])),
        "action_mask has 1 entries",
    ),
    "an upper end of another length": (
        lambda f: edit_statistics(f, lambda s: s["action"].update(q99=[1.0] * 6)),
        "action_high has 6 entries",
    ),
    "words for numbers": (
        lambda f: edit_statistics(f, lambda s: s["action"].update(q99=["high"] * 7)),
        "statistics of 'tiny'.*'high'",
    ),
    "a text for numbers": (
        lambda f: edit_statistics(f, lambda s: s["action"].update(q99="1234567")),
        "no list of numbers",
    ),
    "ends the wrong way round": (
        lambda f: edit_statistics(f, lambda s: s["action"].update(q01=[9.0] * 7)),
        "above its upper end",
    ),
    "means of one tower": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c["means"].pop()),
        "means has 1 entries",
    ),
    "means of two channels": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c["means"][0].pop()),
        "three each",
    ),
    "images of two sizes": (
        lambda f: edit_json(
            f / "preprocessor_config.json",
            lambda c: c.update(input_sizes=[[3, 28, 28], [3, 56, 56]]),
        ),
        "must be one size",
    ),
    "letterboxed images": (
        lambda f: edit_json(
            f / "preprocessor_config.json", lambda c: c.update(image_resize_strategy="letterbox")
        ),
        "preprocessor_config.json: image_resize_strategy is 'letterbox'",
    ),
    "cropped images": (
        lambda f: edit_json(
            f / "config.json", lambda c: c.update(image_resize_strategy="resize-crop")
        ),
        "config.json: image_resize_strategy is 'resize-crop'",
    ),
    "a tokenizer that is not JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be parsed",
    ),
    "a tokenizer without a model": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json cannot be parsed",
    ),
    "an index without a weight map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "index.json has no weight_map",
    ),
    "an index that points elsewhere": (
        lambda f: edit_json(
            f / "model.safetensors.index.json",
            lambda i: i["weight_map"].update({"projector.fc1.weight": "../other.safetensors"}),
        ),
        "must be a file of this folder",
    ),
    "a tensor that the index does not name": (
        lambda f: add_unnamed_tensor(f / "model-00001-of-00002.safetensors"),
        "holds 'stowaway', which the index does not name",
    ),
    "a tower of words": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_towers"][0].update(width="x")),
        r"vision_towers\[0\].width must be int",
    ),
    "three towers": (
        lambda f: edit_json(
            f / "config.json", lambda c: c["vision_towers"].append(c["vision_towers"][0])
        ),
        "list of two",
    ),
    "statistics that are a list": (with_norm_stats([1]), "norm_stats must be an object"),
    "statistics that are null": (with_norm_stats(None), "no data set"),
    "statistics of a data set that are null": (
        lambda f: edit_json(f / "dataset_statistics.json", lambda s: s.update(tiny=None)),
        "'tiny'",
    ),
    "a projector whose matrix is a vector": (
        lambda f: torch.save(
            {"module.fc1.weight": torch.zeros(3)}, f / "proprio_projector--7_checkpoint.pt"
        ),
        "proprio_projector.*lacks the matrix 'fc1.weight'",
    ),
    "a head whose matrix is a number": (
        lambda f: torch.save(
            {"module.model.fc2.weight": torch.tensor(1.0)}, f / "action_head--7_checkpoint.pt"
        ),
        "action_head.*lacks the matrix 'model.fc2.weight'",
    ),
    # What is nested was accepted here, and refused hours later when the result was loaded.
    "rotary positions that are scaled": (
        with_llama(rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}),
        r"config\.json: the network\.llama\.rope_parameters must be",
    ),
    "rotary scaling without its factor": (
        with_llama(rope_scaling={"rope_type": "linear"}),
        r"llama\.rope_scaling must be",
    ),
    "a list of end tokens": (with_llama(eos_token_id=[1, 2]), r"llama\.eos_token_id must be"),
    "an activation that nobody knows": (with_llama(hidden_act="glue"), "glue"),
    "a dangling link to a shard": (
        lambda f: link_nowhere(f / "model-00002-of-00002.safetensors"),
        "model-00002-of-00002",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_with_the_culprit(folder, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("extra", [{"rope_type": "default"}, {}])
def test_plain_rotary_positions_in_the_words_of_transformers_5_are_read(folder, extra):
    with_llama(rope_parameters={"rope_theta": 500.0, **extra})(folder)
    model = load_model(folder)
    kept = model.network.config.llama
    assert kept["rope_theta"] == 500.0
    assert "rope_parameters" not in kept
    places = torch.arange(0, 8, 2) / 8
    torch.testing.assert_close(model.network.llama.rotary_emb.inv_freq, 500.0**-places)
    assert config_from_json("openvla_oft", asdict(model.network.config)) == model.network.config


def test_several_statistics_need_a_key(folder):
    path = folder / "dataset_statistics.json"
    edit_json(path, lambda s: s.update(other=s["tiny"]))
    with pytest.raises(UnsupportedModelError, match="other, tiny"):
        load_model(folder)
    assert load_model(folder, unnorm_key="other").processing.settings.unnorm_key == "other"
    with pytest.raises(UnsupportedModelError, match="'absent' is not one of them"):
        load_model(folder, unnorm_key="absent")


def test_a_path_with_another_robots_name_changes_nothing(pristine, tmp_path):
    moved = shutil.copytree(pristine, tmp_path / "bridge_aloha")
    assert load_model(moved).processing.settings.robot.name == "libero"


def test_a_robot_of_another_size_is_refused(pristine):
    with pytest.raises(UnsupportedModelError, match="aloha"):
        load_model(pristine, robot="aloha")
