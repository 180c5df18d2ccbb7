"""A network that fetches its weights answers as the loaded one does, and holds a part of them."""

import copy
import json

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models import weight_source
from qvla_ros.models.registry import load_model, open_model
from qvla_ros.models.released_folder import find_shards
from qvla_ros.models.weight_source import FetchedLinear, WeightCache, shard_weights, stored_value
from qvla_ros.quantize.linear_weight import linear_weight


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "tiny")


def test_a_fetching_network_answers_as_the_loaded_one_bit_for_bit(folder):
    loaded, opened = load_model(folder), open_model(folder)
    inputs = loaded.processing.prepare(tiny_observation())
    assert opened.network(inputs).equal(loaded.network(inputs))
    assert opened.fingerprint == loaded.fingerprint
    assert opened.bf16_bytes == loaded.bf16_bytes


def test_the_shards_are_read_for_the_fingerprint_only_when_it_is_asked_for(folder):
    opened = open_model(folder)
    shard = next(folder.glob("*.safetensors"))
    before = load_model(folder).fingerprint
    shard.write_bytes(shard.read_bytes() + b" ")
    assert opened.fingerprint not in ("", before)


def test_every_parameter_can_be_had_and_is_that_of_the_loaded_network(folder):
    loaded, opened = load_model(folder), open_model(folder)
    expected = dict(loaded.network.named_parameters())
    found = {name: stored_value(opened.network, name) for name in expected}
    for name, value in expected.items():
        assert found[name].float().reshape(value.shape).equal(value), name


def test_no_weight_matrix_is_in_memory(folder):
    network = open_model(folder).network
    held = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.device.type != "meta"
    ]
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameter.numel() for _, parameter in held) < 0.1 * weights
    assert not any(
        isinstance(network.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)
        for name, _ in held
        if name.endswith("weight")
    )


@pytest.mark.parametrize("token", [256, -1])
def test_a_token_that_the_embedding_has_not_is_refused(folder, token):
    """The bytes behind the table, another tensor's, used to be taken for its row."""
    embedding = open_model(folder).network.llama.embed_tokens
    assert embedding(torch.tensor([[255, 0]])).shape == (1, 2, 32)
    with pytest.raises(UnsupportedModelError, match=f"token {token} is not among the 256"):
        embedding(torch.tensor([[3, token]]))


def test_a_copy_fetches_from_the_same_place_until_it_is_told_otherwise(folder):
    network = open_model(folder).network
    twin = copy.deepcopy(network)
    layer = network.linear_layers()[3]
    module = network.get_submodule(layer.name)
    other = twin.get_submodule(layer.name)
    assert isinstance(module, FetchedLinear)
    assert other.source is module.source
    other.source = weight_source.HeldWeight(torch.ones(layer.rows, layer.columns))
    assert linear_weight(twin, layer).eq(1).all()
    assert not linear_weight(network, layer).eq(1).all()


def test_gradients_are_those_of_the_loaded_network(folder):
    answers = []
    for model in (load_model(folder), open_model(folder)):
        inputs = model.processing.prepare(tiny_observation())
        inputs.pixels.requires_grad_(True)
        model.network(inputs).sum().backward()
        answers.append(inputs.pixels.grad)
    assert answers[0].equal(answers[1])


class Counted:
    """A weight that counts how often it is read."""

    def __init__(self, rows):
        self.shape = (rows, 1)
        self.reads = 0

    def read(self):
        self.reads += 1
        return torch.zeros(self.shape)


def test_what_was_used_last_is_kept_up_to_the_limit():
    cache = WeightCache(limit_bytes=4 * 10)
    small, other, large = Counted(4), Counted(6), Counted(7)
    for weight in (small, other, small, large, small, other):
        cache.get(weight)
    assert (small.reads, other.reads, large.reads) == (2, 2, 1)


def test_a_weight_above_the_limit_is_fetched_every_time():
    cache, huge = WeightCache(limit_bytes=8), Counted(100)
    assert cache.get(huge).shape == (100, 1)
    cache.get(Counted(1))
    cache.get(huge)
    assert huge.reads == 2


def test_a_shard_that_shrinks_while_it_is_used_is_named(folder):
    model = open_model(folder)
    inputs = model.processing.prepare(tiny_observation())
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:4096])
    with pytest.raises(UnsupportedModelError, match="model-00001-of-00002"):
        model.network(inputs)


def test_some_rows_are_read_without_the_others(folder):
    name = "language_model.model.embed_tokens.weight"
    weight = shard_weights(find_shards(folder))[name]
    assert weight.rows([5, 2, 5]).equal(weight.read()[[5, 2, 5]])
    assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["truncated", "unknown", "missing"])
def test_a_bad_folder_is_refused_when_it_is_opened(folder, change):
    shard = folder / "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    if change == "truncated":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif change == "unknown":
        value["weight_map"]["another.weight"] = shard.name
    else:
        del value["weight_map"]["projector.fc1.weight"]
    index.write_text(json.dumps(value))
    with pytest.raises(UnsupportedModelError):
        open_model(folder)
