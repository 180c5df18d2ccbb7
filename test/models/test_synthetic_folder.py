"""Folders with random weights have the released layout, and behave like a trained model's."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic import synthetic_model

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.models.network import ACTIONS
from qvla_ros.models.openvla_oft import OpenVlaOftConfig
from qvla_ros.models.registry import empty_network, load_model
from qvla_ros.models.released_layout import dead_tensors, read_llama, read_towers
from qvla_ros.models.synthetic_folder import write_synthetic_folder
from qvla_ros.models.synthetic_model import SCALES, SyntheticModel, count_numbers
from qvla_ros.models.synthetic_tokenizer import SIZE, synthetic_tokenizer

TINY = synthetic_model("openvla_oft")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_full_size_has_the_released_number_of_parameters_and_bytes():
    full = replace(TINY, towers=None, llama={})
    assert len(full.shapes) == 982
    assert count_numbers(full.shapes) == 7_541_237_184
    dtype, head = full.side_shapes["action_head"]
    assert (dtype, count_numbers(head)) == (torch.bfloat16, 151_117_831)
    dtype, proprio = full.side_shapes["proprio_projector"]
    assert (dtype, count_numbers(proprio)) == (torch.float32, 16_818_176)


def test_the_released_towers_are_named_and_others_are_stated():
    assert "vision_towers" not in replace(TINY, towers=None).config()
    assert len(TINY.config()["vision_towers"]) == 2


def test_wide_is_full_width_with_few_layers():
    towers, llama = SCALES["wide"]
    assert towers is None
    assert replace(TINY, towers=towers, llama=llama).shapes[
        "language_model.model.layers.1.mlp.down_proj.weight"
    ] == (4096, 11008)


def test_files_are_those_of_a_released_folder(tmp_path):
    folder = write_synthetic_folder(tmp_path / "model", TINY)
    names = set(contents(folder))
    assert {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)} <= names
    assert {"action_head--150000_checkpoint.pt", "dataset_statistics.json"} <= names
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = [load_file(folder / name) for name in sorted(set(index["weight_map"].values()))]
    assert {t.dtype for shard in shards for t in shard.values()} == {torch.bfloat16}
    held = sum(t.nbytes for shard in shards for t in shard.values())
    assert index["metadata"]["total_size"] == held == 2 * count_numbers(TINY.shapes)
    sizes = [sum(t.nbytes for t in shard.values()) for shard in shards]
    assert max(sizes) < 2 * min(sizes)
    for stem, dtype in (("action_head", torch.bfloat16), ("proprio_projector", torch.float32)):
        side = torch.load(folder / f"{stem}--150000_checkpoint.pt", weights_only=True)
        assert all(name.startswith("module.") for name in side)
        assert {tensor.dtype for tensor in side.values()} == {dtype}


def test_openvla_has_no_head_and_its_statistics_inside_its_configuration(tmp_path):
    model = synthetic_model("openvla")
    folder = write_synthetic_folder(tmp_path / "model", model)
    assert not [name for name in contents(folder) if name.endswith(".pt") or "dataset" in name]
    assert list(json.loads((folder / "config.json").read_text())["norm_stats"]) == ["synthetic"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        contents(write_synthetic_folder(tmp_path / name, replace(TINY, seed=seed)))
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    shard = "model-00001-of-00003.safetensors"
    assert first[shard] != other[shard]
    assert first["config.json"] == other["config.json"]


def test_how_many_shards_there_are_changes_no_weight(tmp_path):
    few, many = (
        write_synthetic_folder(tmp_path / str(shards), replace(TINY, shards=shards))
        for shards in (1, 5)
    )
    first, second = (load_model(folder).network.state_dict() for folder in (few, many))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("family", ["openvla_oft", "openvla"])
def test_activations_stay_finite_and_alive_through_32_layers(tmp_path, family):
    model = synthetic_model(family)
    model = replace(model, llama={**model.llama, "num_hidden_layers": 32})
    loaded = load_model(write_synthetic_folder(tmp_path / "deep", model), robot="libero")
    network = loaded.network
    question = golden_observation(model.robot.image_names, model.robot.state_dim)
    state = network.first_state(loaded.processing.prepare(question))
    for stage in network.stages():
        state = stage.run(state)
        spread = float(state[stage.writes].std())
        assert 0.01 < spread < 30, f"{stage.name}: {spread}"
    assert state[ACTIONS].abs().max() < 3


def test_weights_have_outliers_and_rows_of_different_sizes(tmp_path):
    towers, llama = SCALES["small"]
    model = replace(TINY, towers=towers, llama=llama)
    network = load_model(write_synthetic_folder(tmp_path / "small", model)).network
    norms = torch.cat([one.weight for one in network.modules() if "RMSNorm" in type(one).__name__])
    assert norms.abs().max() > 4 * norms.abs().median()
    rows = network.llama.layers[0].mlp.up_proj.weight.norm(dim=1)
    assert rows.max() > 2 * rows.min()


def test_greedy_tokens_of_openvla_are_action_tokens(tmp_path):
    folder = write_synthetic_folder(tmp_path / "model", synthetic_model("openvla"))
    loaded = load_model(folder, robot="libero")
    tokens = loaded.network.greedy_tokens(
        loaded.processing.prepare(golden_observation(("primary",), 0))
    )
    config = loaded.network.config
    assert ((tokens >= config.vocabulary - 256) & (tokens < config.vocabulary)).all()


def test_the_tokenizer_leaves_the_action_tokens_free():
    tokenizer = synthetic_tokenizer()
    assert tokenizer.get_vocab_size() == SIZE
    for text in ("pick up the black bowl", "schließe die Schublade", "拿起碗\n"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert max(ids) < SIZE
        assert tokenizer.token_to_id("<unk>") not in ids
        assert tokenizer.decode(ids).strip() == text.strip()
    assert len(tokenizer.encode("pick up the bowl", add_special_tokens=False).ids) == 4


def test_a_vocabulary_without_room_for_the_action_tokens_is_refused():
    with pytest.raises(ConfigurationError, match="at least 832"):
        replace(TINY, llama={**TINY.llama, "vocab_size": 512})


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"shards": 0}, {"unnorm_keys": ()}])
def test_what_cannot_be_made_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        replace(TINY, **wrong)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        write_synthetic_folder(tmp_path / "model", TINY)
    assert not contents(tmp_path / "model")


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConfigurationError, match="GB left"):
        write_synthetic_folder(tmp_path / "model", TINY)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_folder_leaves_nothing_behind(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic_folder(tmp_path / "model", TINY, interrupt)
    assert not list(tmp_path.iterdir())


def test_progress_ends_at_the_bytes_that_were_promised(tmp_path):
    told: list[tuple[int, int]] = []
    write_synthetic_folder(tmp_path / "model", TINY, lambda *one: told.append(one))
    assert told == sorted(told)
    assert told[-1] == (TINY.file_bytes, TINY.file_bytes)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_makes_a_network(scale):
    towers, llama = SCALES[scale]
    model: SyntheticModel = replace(TINY, towers=towers, llama=llama)
    assert math.isclose(model.file_bytes, 2 * count_numbers(model.shapes), rel_tol=0.2)
    config, robot = model.config(), model.robot
    towers = read_towers(config)
    network = empty_network(
        OpenVlaOftConfig(
            towers=towers,
            llama=read_llama(config),
            views=len(robot.image_names),
            horizon=robot.horizon,
            action_dim=robot.action_dim,
            state_dim=robot.state_dim,
        )
    )
    unused = dead_tensors(towers) | {"language_model.lm_head.weight"}
    running = {name: shape for name, shape in model.shapes.items() if name not in unused}
    side = sum(count_numbers(shapes) for _, shapes in model.side_shapes.values())
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == count_numbers(running) + side
