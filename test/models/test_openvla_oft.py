"""OpenVLA-OFT against the stock Llama: what stands where, what sees what, what is read where."""

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.models.network import ACTIONS
from qvla_ros.models.registry import load_model
from qvla_ros.models.stages import run_stages


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def sequence(network, inputs):
    """``[BOS][patches of each image][state][prompt][zeros][EOS]``, put together by hand."""
    towers, patches = network.vision_backbone, []
    for image in range(2):  # primary, then wrist
        first, second = inputs.pixels[:, 6 * image : 6 * image + 6].split(3, dim=1)
        features = torch.cat([towers.featurizer(first), towers.fused_featurizer(second)], dim=-1)
        patches.append(network.projector(features))
    embed = network.llama.embed_tokens
    text = embed(inputs.token_ids)
    state = network.proprio_projector(inputs.state)[:, None]
    zeros = torch.zeros(1, 8 * 7, text.shape[-1])
    end = embed(torch.tensor([[inputs.end_token_id]]))
    return torch.cat([text[:, :1], *patches, state, text[:, 1:], zeros, end], dim=1)


def stock_answers(network, tokens):
    """Hidden states of the stock ``LlamaModel`` in which every token sees all others."""
    mask = torch.zeros(1, 1, tokens.shape[1], tokens.shape[1])
    return network.llama(
        inputs_embeds=tokens, attention_mask=mask, use_cache=False
    ).last_hidden_state


def before_each_placeholder(hidden):
    """The last placeholder stands before the end token; its answer one position before itself."""
    end = hidden.shape[1] - 1
    return hidden[:, [place - 1 for place in range(end - 8 * 7, end)]]


def test_the_chunk_is_the_stock_bidirectional_llama_read_one_position_before_each_placeholder(
    model,
):
    network = model.network
    for seed in range(3):
        inputs = model.processing.prepare(tiny_observation(seed))
        hidden = stock_answers(network, sequence(network, inputs))
        expected = network.action_head(before_each_placeholder(hidden))
        torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-5)
        shifted = network.action_head(hidden[:, -1 - 8 * 7 : -1])
        assert (network(inputs) - shifted).abs().max() > 1e-3


def test_the_last_token_of_the_sequence_changes_the_first_action(model):
    """Attention is bidirectional: a causal network's answer would not see its end token."""
    network = model.network
    state = network.first_state(model.processing.prepare(tiny_observation()))
    changed = {**state, "end": state["end"] + 1.0}
    first, second = (run_stages(network.stages(), one)[ACTIONS] for one in (state, changed))
    assert (first[0, 0] - second[0, 0]).abs().max() > 1e-4


def test_the_last_token_changes_the_first_hidden_state(model):
    network = model.network
    stages = [one for one in network.stages() if one.name.startswith("language_model.")]
    tokens = sequence(network, model.processing.prepare(tiny_observation()))
    changed = tokens.clone()
    changed[0, -1] += 1.0
    first, second = (run_stages(stages, {"hidden": one})["hidden"] for one in (tokens, changed))
    assert (first[0, 0] - second[0, 0]).abs().max() > 1e-4
