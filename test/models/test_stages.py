"""The network in stages is the network."""

import torch
from tiny_model import tiny_folder

from qvla_ros.models.registry import load_model
from qvla_ros.models.stages import run_stages


def test_the_language_stages_are_the_llama_of_transformers(tmp_path):
    model = load_model(tiny_folder(tmp_path))
    network = model.network
    hidden = torch.randn(2, 9, network.llama.config.hidden_size)
    stages = [one for one in network.stages() if one.name.startswith("language_model.")]
    staged = network.llama.norm(run_stages(stages, {"hidden": hidden})["hidden"])
    whole = network.llama(
        inputs_embeds=hidden, attention_mask=hidden.new_zeros(2, 1, 9, 9), use_cache=False
    ).last_hidden_state
    assert torch.equal(staged, whole)


def test_the_vision_stages_are_the_towers(tmp_path):
    network = load_model(tiny_folder(tmp_path)).network
    pixels = torch.randn(3, 3, 28, 28)
    for tower in ("featurizer", "fused_featurizer"):
        staged = run_stages(network.vision_backbone.stages(tower), {tower: pixels})[tower]
        assert torch.equal(staged, getattr(network.vision_backbone, tower)(pixels))


def test_every_layer_is_executed_by_exactly_one_stage(tmp_path):
    network = load_model(tiny_folder(tmp_path)).network
    for layer in network.linear_layers():
        assert sum(stage.owns(layer.name) for stage in network.stages()) == 1


def test_a_stage_leaves_the_state_it_was_given(tmp_path):
    network = load_model(tiny_folder(tmp_path)).network
    stage = network.stages()[0]
    pixels = torch.randn(1, 3, 28, 28)
    state = {"featurizer": pixels}
    assert stage.run(state)["featurizer"] is not pixels
    assert state["featurizer"] is pixels
