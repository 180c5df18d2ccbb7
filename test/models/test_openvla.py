"""Autoregressive OpenVLA: its tokens, its cache, and the smooth answer that has a gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import synthetic_model

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.network import ACTIONS
from qvla_ros.models.openvla import OpenVlaConfig
from qvla_ros.models.processing import split_inputs, stack_inputs
from qvla_ros.models.registry import load_model
from qvla_ros.models.stages import run_stages
from qvla_ros.models.synthetic_folder import write_synthetic_folder
from qvla_ros.observation import Observation
from qvla_ros.quantize.calibration import calibration_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvla") / "model"
    return write_synthetic_folder(path, synthetic_model("openvla"))


@pytest.fixture
def model(folder):
    return load_model(folder, robot="libero")


def observation(seed: int = 0, instruction: str = "pick up the bowl") -> Observation:
    image = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    return Observation(0, {"primary": image}, np.zeros(0, np.float32), instruction)


def smooth(network, inputs) -> torch.Tensor:
    return run_stages(network.stages(), network.first_state(inputs))[ACTIONS]


def prompt_tokens(network, inputs) -> torch.Tensor:
    """``[BOS][patches][prompt]`` as the language model reads them, one sample."""
    first, second = inputs.pixels.unflatten(1, (2, 3)).unbind(1)
    towers = network.vision_backbone
    features = torch.cat([towers.featurizer(first), towers.fused_featurizer(second)], dim=-1)
    text = network.llama.embed_tokens(inputs.token_ids)
    return torch.cat([text[:, :1], network.projector(features), text[:, 1:]], dim=1)


def test_the_cached_decoding_is_the_stock_causal_llama_run_anew_for_every_token(model):
    network = model.network
    for seed in range(3):
        inputs = model.processing.prepare(observation(seed))
        hidden = prompt_tokens(network, inputs)
        tokens = []
        for _ in range(7):
            last = network.llama(inputs_embeds=hidden, use_cache=False).last_hidden_state[:, -1]
            tokens.append(network.language_model["lm_head"](last).argmax(-1))
            hidden = torch.cat([hidden, network.llama.embed_tokens(tokens[-1])[:, None]], dim=1)
        assert network.greedy_tokens(inputs).tolist() == torch.stack(tokens, dim=1).tolist()


def test_the_stages_are_the_stock_causal_llama_on_the_whole_sequence(model):
    network = model.network
    inputs = model.processing.prepare(observation())
    answer = network.greedy_tokens(inputs)
    hidden = torch.cat(
        [prompt_tokens(network, inputs), network.llama.embed_tokens(answer[:, :-1])], dim=1
    )
    last = network.llama(inputs_embeds=hidden, use_cache=False).last_hidden_state[:, -7:]
    vocabulary = network.config.vocabulary
    logits = network.language_model["lm_head"](last)[..., vocabulary - 256 : vocabulary]
    tokens = torch.arange(vocabulary - 256, vocabulary)
    expected = logits.softmax(-1) @ network.bin_centres(tokens)
    torch.testing.assert_close(smooth(network, inputs)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_smooth_answer_becomes_the_greedy_one_as_the_softmax_sharpens(model):
    inputs = model.processing.prepare(observation())
    deployed = model.network(inputs)
    assert deployed.shape == (1, 1, 7)
    assert deployed.dtype == torch.float32
    distances = []
    for _ in range(4):
        distances.append(float((smooth(model.network, inputs) - deployed).abs().max()))
        model.network.language_model["lm_head"].weight.mul_(10)
    assert distances[0] > 0.01
    assert distances[-1] == 0.0
    assert torch.equal(model.network(inputs), deployed)


def test_the_smooth_answer_has_a_gradient_in_every_layer(model):
    network = model.network.requires_grad_(True)
    smooth(network, model.processing.prepare(observation())).square().sum().backward()
    for layer in network.linear_layers():
        gradient = network.get_parameter(f"{layer.name}.weight").grad
        assert gradient is not None and gradient.abs().max() > 0, layer.name


def test_calibration_frames_carry_the_float_networks_answer(model):
    seen = [observation(seed) for seed in range(3)]
    calibration = calibration_set(seen, model.processing, 3).taught_by(model.network)
    for frame, one in zip(calibration.frames, seen, strict=True):
        alone = model.network.greedy_tokens(model.processing.prepare(one))
        assert torch.equal(frame.action_ids, alone)


def test_the_stages_see_the_answer_that_the_inputs_hold(model):
    inputs = model.processing.prepare(observation())
    own = model.network.greedy_tokens(inputs)
    assert torch.equal(
        smooth(model.network, replace(inputs, action_ids=own)), smooth(model.network, inputs)
    )
    other = smooth(model.network, replace(inputs, action_ids=own - 100))
    # The first number is decided by the prompt alone, the others by what stands before them.
    assert torch.equal(other[..., 0], smooth(model.network, inputs)[..., 0])
    assert (other[..., 1:] - smooth(model.network, inputs)[..., 1:]).abs().max() > 1e-4


def test_a_later_token_changes_nothing_before_it(model):
    stages = [s for s in model.network.stages() if s.name.startswith("language_model.model")]
    tokens = torch.randn(1, 6, model.network.llama.config.hidden_size)
    changed = tokens.clone()
    changed[0, -1] += 1.0
    first, second = (run_stages(stages, {"hidden": one})["hidden"] for one in (tokens, changed))
    torch.testing.assert_close(first[0, :-1], second[0, :-1], rtol=0, atol=1e-6)
    assert (first[0, -1] - second[0, -1]).abs().max() > 1e-3


def test_tokens_stand_for_bin_centres_as_in_the_original(model):
    config = model.network.config
    tokens = np.arange(config.vocabulary + 60)
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    bins = np.clip(config.vocabulary - tokens - 1, 0, 254)
    answered = model.network.bin_centres(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(answered, centres[bins], atol=1e-6)
    assert answered[config.vocabulary - 1] == answered.min()


def test_a_black_and_a_white_image_give_different_actions(model):
    answers = []
    for level in (0, 255):
        images = {"primary": np.full((40, 40, 3), level, np.uint8)}
        inputs = model.processing.prepare(replace(observation(), images=images))
        answers.append((model.network(inputs), smooth(model.network, inputs)))
    for black, white in zip(*answers, strict=True):
        assert (black - white).abs().max() > 1e-3


def test_a_batch_gives_the_answers_of_its_frames(model):
    frames = [model.processing.prepare(observation(seed)) for seed in range(3)]
    together = model.network(stack_inputs(frames))
    assert torch.equal(together, torch.cat([model.network(frame) for frame in frames]))


def test_frames_keep_their_answers_when_they_are_stacked_and_split(model):
    frames = [model.processing.prepare(observation(seed)) for seed in range(2)]
    taught = model.network.taught(stack_inputs(frames))
    for frame, apart in zip(frames, split_inputs(taught), strict=True):
        assert torch.equal(apart.action_ids, model.network.greedy_tokens(frame))
        assert torch.equal(apart.pixels, frame.pixels)
    with pytest.raises(ValueError, match="only some"):
        stack_inputs([frames[0], split_inputs(taught)[1]])


def test_the_output_head_is_live_but_not_quantized(model):
    names = dict(model.network.named_parameters())
    assert "language_model.lm_head.weight" in names
    layers = model.network.linear_layers()
    assert len(layers) == 2 * (1 + 2 * 4) + 2 * 7
    assert not [layer for layer in layers if "lm_head" in layer.name]


def test_every_layer_is_executed_by_exactly_one_stage(model):
    for layer in model.network.linear_layers():
        assert sum(stage.owns(layer.name) for stage in model.network.stages()) == 1


def test_it_has_one_image_no_state_and_one_action(model):
    settings = model.processing.settings
    assert (settings.robot.horizon, settings.robot.state_dim) == (1, 0)
    assert settings.robot.image_names == ("primary",)
    inputs = model.processing.prepare(observation())
    assert inputs.state.shape == (1, 0)
    assert inputs.pixels.shape == (1, 6, 28, 28)
    actions = model.processing.robot_actions(model.network(inputs)[0].numpy())
    assert actions.shape == (1, 7)


@pytest.mark.parametrize(("robot", "cropped"), [("libero", True), ("bridge", False)])
def test_only_robots_that_it_was_tuned_on_with_crops_are_cropped(folder, robot, cropped):
    assert load_model(folder, robot=robot).processing.settings.center_crop is cropped


def test_the_robot_must_be_named(folder):
    with pytest.raises(UnsupportedModelError, match="--robot"):
        load_model(folder)


def test_a_robot_with_other_statistics_is_refused(folder):
    with pytest.raises(UnsupportedModelError, match="1st to the 99th percentile"):
        load_model(folder, robot="aloha")


def test_another_statistics_key_is_refused_by_name(folder):
    with pytest.raises(UnsupportedModelError, match="statistics of synthetic; 'absent'"):
        load_model(folder, unnorm_key="absent", robot="libero")


def test_bins_that_do_not_fit_the_vocabulary_are_refused(model):
    config = model.network.config
    with pytest.raises(ValueError, match="do not end at token"):
        OpenVlaConfig(config.towers, config.llama, 7, 256, 100)
