"""8-bit activations where the action hardly notices."""

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.activation_choice import activation_errors, choose_activations
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.quantized_model import rounded_activations

METRIC = ActionMetric.uniform(8, 7)


def test_the_cheapest_layers_are_chosen_while_their_errors_fit_the_share():
    errors = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5}
    assert choose_activations(errors, weight_error=10.0, share=0.35) == {"d": 8, "b": 8, "c": 8}
    assert choose_activations(errors, weight_error=10.0, share=0.01) == {}
    assert choose_activations(errors, weight_error=100.0, share=1.0).keys() == errors.keys()


def test_the_error_of_a_layer_is_what_rounding_its_inputs_does(tmp_path):
    model = load_model(tiny_folder(tmp_path))
    frames = calibration_set([tiny_observation(seed) for seed in range(3)], model.processing, 3)
    errors = activation_errors(model.network, frames, METRIC)
    assert errors.keys() == {layer.name for layer in model.network.linear_layers()}
    name = "language_model.model.layers.0.mlp.down_proj"
    batch = frames.batches()[0]
    with torch.inference_mode():
        before = model.network(batch)
        handle = model.network.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs: (rounded_activations(inputs[0]),)
        )
        after = model.network(batch)
        handle.remove()
    expected = float(METRIC.squared_error(after, before).mean())
    assert expected > 0
    assert errors[name] == pytest.approx(expected, rel=0.05)


def test_a_rounded_token_is_within_half_a_step():
    tokens = torch.randn(9, 33) * torch.logspace(-6, 3, 9)[:, None]
    step = tokens.abs().amax(1, keepdim=True) / 127
    assert ((rounded_activations(tokens) - tokens).abs() <= step * 0.5001).all()
    assert not rounded_activations(torch.zeros(1, 4)).any()
