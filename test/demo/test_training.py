"""The training of the demo policy goes on where it was killed, and its aims are the data's."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.assemble import assemble
from demo.pretrained import read_language_model
from demo.train import policy
from demo.train.dataset import TaskSamples, _aims, read_samples, write_samples
from demo.train.demonstration import Demonstration, DemonstrationOrigin, write_demonstration
from demo.train.layout import DINO, SIGLIP_LIKE
from demo.train.train import TOWERS, _go_on_from, train, training_options
from demo.train.trainer import Trainer, TrainingSettings
from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import encode_jpeg
from qvla_ros.models.folder_settings import processing_settings
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.processing import Processing
from qvla_ros.models.registry import open_model
from qvla_ros.models.released_folder import open_small_files
from qvla_ros.models.released_layout import read_llama, read_towers
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS

MODEL = Path(__file__).parents[2] / "demo" / "model"
ROBOT = ROBOT_CONSTANTS["libero"]


def samples(seed: int, instruction: str) -> TaskSamples:
    generator = torch.Generator().manual_seed(seed)
    side, count = DINO.image_size, 3
    patches = (side // DINO.patch_size) ** 2
    return TaskSamples(
        instruction=instruction,
        pixels=torch.randint(0, 256, (2, count, 2, 3, side, side), dtype=torch.uint8),
        features=torch.randn(2, count, 2, patches, DINO.width, generator=generator).bfloat16(),
        states=torch.randn(count, 8, generator=generator),
        chunks=torch.rand(count, 8, 7, generator=generator),
        aims=torch.randn(count, 6, generator=generator),
        demonstrations=1,
    )


def trainer(
    path: Path, data: str = "one", pretrained: Collection[str] = (), share: float = 1.0
) -> Trainer:
    small = open_small_files(MODEL)
    processing = Processing(processing_settings(small, None, ROBOT), small.tokenizer_json)
    torch.manual_seed(0)
    shape = OpenVlaOftConfig(read_towers(small.config), read_llama(small.config), 2, 8, 7, 8)
    assert shape.towers == (DINO, SIGLIP_LIKE)
    tasks = [samples(1, "pick up the bowl"), samples(2, "put it down")]
    settings = TrainingSettings(4, 2, learning_rate=1e-3, warmup=1, pretrained_share=share)
    return Trainer(
        OpenVlaOft(shape), processing, tasks, settings, {"data": data}, path, pretrained
    )


def test_what_began_pretrained_learns_at_a_share_of_the_rate(tmp_path):
    name = "language_model.model.norm.weight"
    one = trainer(tmp_path / "a.safetensors", pretrained={name}, share=0.2)
    one._step()
    rates = {len(group["params"]): group["lr"] for group in one._optimizer.param_groups}
    assert rates[1] == pytest.approx(0.2 * 1e-3)
    assert max(rates.values()) == pytest.approx(1e-3)


def test_a_language_model_is_read_with_its_rotary_halves_in_order(tmp_path):
    gguf = pytest.importorskip("gguf")
    heads, groups, half, width = 4, 2, 3, 24
    rng = np.random.default_rng(0)
    told = {
        "attn_q": rng.normal(size=(heads * 2 * half, width)).astype(np.float32),
        "attn_k": rng.normal(size=(groups * 2 * half, width)).astype(np.float32),
        "ffn_up": rng.normal(size=(7, width)).astype(np.float32),
    }
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, value in told.items():
        count = {"attn_q": heads, "attn_k": groups}.get(name)
        if count is not None:  # as the format interleaves them
            value = value.reshape(count, 2, half, width).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"blk.0.{name}.weight", np.ascontiguousarray(value))
    writer.add_tensor("blk.1.ffn_up.weight", told["ffn_up"])
    writer.add_tensor("token_embd.weight", np.zeros((5, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_language_model(tmp_path / "a.gguf", 1, heads, groups)
    layer = "language_model.model.layers.0."
    for name, part in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj")):
        assert np.array_equal(read.pop(f"{layer}{part}.weight").numpy(), told[name])
    assert np.array_equal(read.pop(f"{layer}mlp.up_proj.weight").numpy(), told["ffn_up"])
    assert not read


class KilledError(Exception):
    pass


def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole.safetensors").run(keep_every=2)
    cut = trainer(tmp_path / "cut.safetensors")
    step = cut._step

    def step_until_killed() -> None:
        if cut.state.step == 3:
            raise KilledError
        step()

    monkeypatch.setattr(cut, "_step", step_until_killed)
    with pytest.raises(KilledError):
        cut.run(keep_every=2)
    again = trainer(tmp_path / "cut.safetensors")
    assert again.state.step == 2
    resumed = again.run(keep_every=2)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not any(name.startswith(("aim_head.", "vision_backbone.featurizer")) for name in whole)
    with pytest.raises(ConfigurationError, match="another data"):
        trainer(tmp_path / "cut.safetensors", data="other")


def demonstration_of(folder: Path, task: int, instruction: str) -> None:
    random = np.random.default_rng(task)
    pictures = random.integers(0, 256, (2, 2, 128, 128, 3), dtype=np.uint8)
    jpegs = {
        name: [encode_jpeg(picture) for picture in pictures[place]]
        for place, name in enumerate(ROBOT.image_names)
    }
    actions = random.uniform(-1, 1, (12, 7)).astype(np.float32)
    actions[:, -1] = [1] * 4 + [0] * 4 + [1] * 4
    states = random.normal(size=(12, 8)).astype(np.float32)
    origin = DemonstrationOrigin("libero_spatial", task, 1, 0, 0.1, "3.3.2")
    steps = np.array([0, 2], np.int32)
    folder.mkdir()
    write_demonstration(
        folder / "0000.npz", Demonstration(jpegs, steps, states, actions, instruction, origin)
    )


def test_a_training_from_demonstrations_to_a_model_folder_and_another_from_there(tmp_path):
    for task in (0, 1):
        demonstration_of(tmp_path / f"task_{task}", task, f"pick up bowl {task}")
    words = ["--data", *(str(tmp_path / f"task_{task}") for task in (0, 1)), "--device", "cpu"]
    words += ["--steps", "2", "--batch", "2", "--variants", "1", "--work", str(tmp_path / "work")]
    words += ["--samples", str(tmp_path / "samples")]
    first, second = tmp_path / "first", tmp_path / "second"
    train(training_options([*words, "--out", str(first / "model")]))
    goes_on = ["--work", str(tmp_path / "more"), "--begin-with", str(first)]
    train(training_options([*words, *goes_on, "--out", str(second / "model")]))
    before, after = (load_file(one / "model" / "trained.safetensors") for one in (first, second))
    kept = load_file(MODEL / "trained.safetensors")
    own = {name: tensor.shape for name, tensor in before.items() if "embed_tokens" not in name}
    assert own == {name: kept[name].shape for name in own}
    # the same seed and samples: without what it began with, the second would be the first again
    moved = [(after[name].float() - before[name].float()).abs().max() for name in own]
    assert 0 < max(moved) < 0.01
    runs = json.loads((second / "training.json").read_text())["runs"]
    assert runs[0] == json.loads((first / "training.json").read_text())["runs"][0]
    assert [one["tasks"]["pick up bowl 1"]["samples"] for one in runs] == [2, 2]
    sha256 = hashlib.sha256((first / "model" / "trained.safetensors").read_bytes()).hexdigest()
    assert (runs[0]["begin_with"], runs[1]["begin_with"]) == (None, sha256)
    assert open_model(assemble(second / "model", tmp_path / "whole")).bf16_bytes > 50e6


def test_prepared_samples_are_read_as_they_were_written(tmp_path):
    written = samples(1, "pick up the bowl")
    write_samples(tmp_path / "a.safetensors", written)
    read = read_samples(tmp_path / "a.safetensors")
    assert (read.instruction, read.demonstrations) == ("pick up the bowl", 1)
    for name in ("pixels", "features", "states", "chunks", "aims"):
        assert torch.equal(getattr(read, name), getattr(written, name))


def test_the_aim_of_an_episode_is_where_the_gripper_closes_and_where_it_opens_again():
    states = np.arange(6 * 8, dtype=np.float32).reshape(6, 8)
    actions = np.zeros((6, 7), np.float32)
    actions[:, -1] = [1, 1, 0, 0, 1, 1]
    origin = DemonstrationOrigin("libero_spatial", 0, 1, 0, 0.1, "3.3.2")
    steps = np.array([0, 2, 4], np.int32)
    aims = _aims(Demonstration({}, steps, states, actions, "pick", origin))
    assert aims.shape == (3, 6)
    np.testing.assert_array_equal(aims, np.repeat([[*states[2, :3], *states[4, :3]]], 3, axis=0))


@pytest.mark.parametrize("same_tokens", [True, False])
def test_embeddings_of_other_tokens_are_not_gone_on_from(tmp_path, same_tokens):
    network = trainer(tmp_path / "state.safetensors")._network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if same_tokens:
        shutil.copy(MODEL / "tokenizer.json", tmp_path)
    else:
        (tmp_path / "tokenizer.json").write_text("{}")
    _go_on_from(MODEL, network, tmp_path)
    trained = load_file(MODEL / "trained.safetensors")
    embeddings = "language_model.model.embed_tokens.weight"
    for name, tensor in trained.items():
        taken = same_tokens or name != embeddings
        expected = tensor.float() if taken else before[name]
        assert torch.equal(network.state_dict()[name], expected), name


def test_a_training_with_another_language_model_takes_the_towers_only(tmp_path):
    network = trainer(tmp_path / "state.safetensors")._network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = load_file(MODEL / "trained.safetensors")
    weights["projector.fc3.weight"] = torch.zeros(5, 4)  # as wide as that language model
    shutil.copy(MODEL / "tokenizer.json", tmp_path)
    save_file(weights, tmp_path / "trained.safetensors")
    _go_on_from(tmp_path, network, tmp_path, TOWERS)
    for name, tensor in network.state_dict().items():
        taken = name.startswith("vision_backbone.fused_featurizer.")
        assert torch.equal(tensor, weights[name].float() if taken else before[name]), name


def test_weights_of_another_network_are_not_gone_on_from(tmp_path):
    network = trainer(tmp_path / "state.safetensors")._network
    shutil.copy(MODEL / "tokenizer.json", tmp_path)
    weights = load_file(MODEL / "trained.safetensors")
    weights["projector.fc1.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "trained.safetensors")
    with pytest.raises(ConfigurationError, match=r"another network: projector\.fc1\.bias"):
        _go_on_from(tmp_path, network, tmp_path)
    del weights["projector.fc1.bias"]
    save_file(weights, tmp_path / "trained.safetensors")
    with pytest.raises(ConfigurationError, match=r"another network: projector\.fc1\.bias"):
        _go_on_from(tmp_path, network, tmp_path)


def test_what_a_training_begins_with_must_be_whole_and_not_what_it_writes(tmp_path, capsys):
    words = ["--data", str(tmp_path), "--begin-with"]
    assert training_options([*words, str(MODEL.parent), "--out", str(tmp_path / "model")])
    for folder, out, said in (
        (tmp_path, tmp_path / "model", "training.json is missing"),
        (MODEL.parent, MODEL, "begin with a copy"),
    ):
        with pytest.raises(SystemExit):
            training_options([*words, str(folder), "--out", str(out)])
        assert said in capsys.readouterr().err


def test_a_wrong_word_for_the_training_is_told_before_the_collecting(monkeypatch, capsys):
    monkeypatch.setattr(policy, "collect", lambda *_: pytest.fail("it collects"))
    monkeypatch.setattr("sys.argv", ["policy", "small", "--stepps", "3"])
    with pytest.raises(SystemExit):
        policy.main()
    assert "--stepps" in capsys.readouterr().err


def test_a_larger_policy_begins_with_the_towers_in_git_and_stays_out_of_git(tmp_path, monkeypatch):
    done: list[argparse.Namespace] = []
    monkeypatch.setattr(policy, "OUTPUT", tmp_path)
    monkeypatch.setattr(policy, "collect", lambda *_: None)
    monkeypatch.setattr(policy, "train", done.append)
    monkeypatch.setattr(policy, "assemble", lambda source, model: (source, model))
    monkeypatch.setattr("sys.argv", ["policy", "large", "--seed", "7"])
    assert policy.main() == 0
    (one,) = done
    assert (one.begin_with, one.out) == (MODEL.parent, tmp_path / "training_large" / "model")
    assert (one.language, one.pretrained_share, one.seed) == ("smollm2", 0.4, 7)
