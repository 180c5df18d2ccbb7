"""Pruned rows and the columns behind them: the same network with less in it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_model import tiny_folder, tiny_observation
from transformers import LlamaConfig, LlamaModel

from qvla_ros.models.registry import load_model
from qvla_ros.quantize.structure import feeds, removable, without_partners


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def pruned_bits(network, share, seed=0):
    """Widths of which about ``share`` are 0."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer.name: torch.where(torch.rand(layer.rows, generator=generator) < share, 0, 16).to(
            torch.uint8
        )
        for layer in network.linear_layers()
    }


def zeroed(network, row_bits):
    """The network with the weights (not the biases) of its 0-bit rows set to zero."""
    copied = copy.deepcopy(network)
    for name, bits in row_bits.items():
        copied.get_submodule(name).weight.data[bits == 0] = 0.0
    return copied


def without_columns(network, input_columns, biases):
    """The network whose layers ignore their removed columns and have the folded biases."""
    copied = copy.deepcopy(network)
    for name, kept in input_columns.items():
        module = copied.get_submodule(name)
        removed = torch.ones(module.in_features, dtype=torch.bool)
        removed[kept.long()] = False
        module.weight.data[:, removed] = 0.0
        # A column that is not there cannot be read: whatever reaches it must not matter.
        module.register_forward_pre_hook(
            lambda m, inputs, removed=removed: inputs[0].masked_fill(removed, 1e3)
        )
        if name in biases:
            module.bias.data += biases[name]
    return copied


def folded_biases(network, row_bits, input_columns, known):
    """What the removed columns add to the bias of the layer that loses them."""
    added = {}
    for feed in known:
        if feed.consumer not in input_columns or feed.through == "product":
            continue
        producer = network.get_submodule(feed.producers[0])
        consumer = network.get_submodule(feed.consumer)
        if producer.bias is None:
            continue
        removed = torch.ones(consumer.in_features, dtype=torch.bool)
        removed[input_columns[feed.consumer].long()] = False
        constant = producer.bias.detach()[feed.rows[removed]]
        if feed.through == "gelu":
            constant = F.gelu(constant)
        added[feed.consumer] = consumer.weight.detach()[:, removed] @ constant
        added[feed.consumer][row_bits[feed.consumer] == 0] = 0.0
    return added


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_removing_columns_and_folding_biases_changes_nothing(model, share):
    network = model.network
    known = feeds(network)
    bits = without_partners(pruned_bits(network, share), known)
    kept = removable(bits, known, block=1)
    assert {name.rsplit(".", 1)[-1] for name in kept} == {"proj", "fc2", "o_proj", "down_proj"}
    full = zeroed(network, bits)
    small = without_columns(full, kept, folded_biases(network, bits, kept, known))
    inputs = model.processing.prepare(tiny_observation())
    with torch.inference_mode():
        torch.testing.assert_close(small(inputs), full(inputs), rtol=1e-4, atol=1e-5)


def test_the_biases_matter(model):
    """The test above could not fail if the constants were zero: without folding it does."""
    network = model.network
    known = feeds(network)
    bits = pruned_bits(network, 0.5)
    kept = removable(bits, known, block=1)
    full = zeroed(network, bits)
    inputs = model.processing.prepare(tiny_observation())
    with torch.inference_mode():
        gap = (without_columns(full, kept, {})(inputs) - full(inputs)).abs().max()
    assert gap > 1e-2


def test_a_partner_of_a_pruned_row_may_be_pruned_for_nothing(model):
    network = model.network
    bits = pruned_bits(network, 0.3)
    paired = without_partners(bits, feeds(network))
    gate, up = (f"language_model.model.layers.0.mlp.{name}_proj" for name in ("gate", "up"))
    dead = (bits[gate] == 0) | (bits[up] == 0)
    assert paired[gate].eq(0).equal(dead)
    assert paired[up].eq(0).equal(dead)
    inputs = model.processing.prepare(tiny_observation())
    with torch.inference_mode():
        first, second = zeroed(network, bits)(inputs), zeroed(network, paired)(inputs)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_columns_go_in_whole_blocks_and_one_always_stays(model):
    network = model.network
    known = feeds(network)
    down = "language_model.model.layers.0.mlp.down_proj"  # 48 columns
    up = down.replace("down", "up")
    bits = pruned_bits(network, 0.0)
    assert removable(bits, known, block=1) == {}
    bits[up][:15] = 0
    assert down not in removable(bits, known, block=16)
    bits[up][20] = 0
    kept = removable(bits, known, block=16)[down]
    assert kept.dtype == torch.int32
    assert kept.tolist() == [i for i in range(15, 48) if i != 20]
    bits[up][:] = 0
    assert removable(bits, known, block=1)[down].tolist() == [0]


def test_a_value_head_that_several_query_heads_read_feeds_all_of_them(model):
    """Grouped-query attention: 4 query heads of 4 numbers, 2 value heads."""
    network = copy.deepcopy(model.network)
    torch.manual_seed(0)
    llama = LlamaModel(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=8,
        )
    )
    network.language_model["model"] = llama
    feed = next(one for one in feeds(network) if one.consumer.endswith("o_proj"))
    value, output = llama.layers[0].self_attn.v_proj, llama.layers[0].self_attn.o_proj
    seen = []
    output.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    value.weight.data[5] = 0.0  # head 1, number 1
    with torch.inference_mode():
        llama(inputs_embeds=torch.randn(1, 6, 16))
    dead = torch.nonzero((seen[0] == 0).all(1)[0]).flatten()
    assert dead.tolist() == torch.nonzero(feed.rows == 5).flatten().tolist() == [9, 13]
