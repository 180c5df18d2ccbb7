"""Quantizing a whole network on its own quantized inputs."""

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import LayerCodes, QuantizedModel, fake_quantized
from qvla_ros.quantize.reconstruction import reconstruct
from qvla_ros.quantize.rounding import clipped_grid, codes_on
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity

METRIC = ActionMetric.uniform(8, 7)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def frames(model):
    return calibration_set([tiny_observation(seed) for seed in range(24)], model.processing, 24)


@pytest.fixture(scope="module")
def plan(model, frames):
    table = measure_sensitivity(model.network, frames, METRIC, MeasureSettings(probes=4))
    return allocate_bits(table, BitBudget(average_bits_per_weight=3.0))


def plainly_rounded(network, plan):
    layers = {}
    for layer in plan.layers:
        weight = linear_weight(network, layer)
        codes = LayerCodes(layer, plan.row_bits[layer.name], weight)
        for bits, index in codes.rows_by_width():
            grid = clipped_grid(weight[index], bits, torch.ones(layer.columns))
            codes.put(index, grid, codes_on(weight[index], grid, bits))
        layers[layer.name] = codes.finished()
    return QuantizedModel(layers)


def action_error(network, quantized, frames):
    twin = fake_quantized(network, quantized)
    with torch.inference_mode():
        errors = [(twin(one) - network(one)).square().mean() for one in frames.batches()]
    return float(torch.stack(errors).mean())


def test_reconstruction_beats_plain_rounding_of_the_same_plan_on_new_frames(model, frames, plan):
    unseen = calibration_set(
        [tiny_observation(seed) for seed in range(100, 120)], model.processing, 20
    )
    ours = reconstruct(model.network, plan, frames)
    plain = plainly_rounded(model.network, plan)
    assert action_error(model.network, ours, unseen) < 0.6 * action_error(
        model.network, plain, unseen
    )


def test_the_plan_is_followed_and_the_network_left_alone(model, frames, plan):
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    quantized = reconstruct(model.network, plan, frames)
    assert list(quantized.layers) == [layer.name for layer in plan.layers]
    for name, layer in quantized.layers.items():
        assert layer.row_bits.equal(plan.row_bits[name])
        assert not layer.dequantize()[plan.row_bits[name] == 0].any()
    assert all(value.equal(before[name]) for name, value in model.network.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.network.modules())


def test_the_same_input_gives_the_same_codes(model, frames, plan):
    first, second = (reconstruct(model.network, plan, frames) for _ in range(2))
    for name, layer in first.layers.items():
        assert layer.codes.equal(second.layers[name].codes)
        assert layer.grid.scale.equal(second.layers[name].grid.scale)
    assert all(value.equal(second.overrides[name]) for name, value in first.overrides.items())


@pytest.mark.parametrize("stages", [1, 4, 6])
def test_an_interrupted_reconstruction_goes_on_to_the_same_codes(
    model, frames, plan, tmp_path, stages
):
    class InterruptionError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == stages:
            raise InterruptionError

    whole = reconstruct(model.network, plan, frames)
    with pytest.raises(InterruptionError):
        reconstruct(model.network, plan, frames, stop, Journal(tmp_path / "j", {}))
    resumed = reconstruct(model.network, plan, frames, journal=Journal(tmp_path / "j", {}))
    assert list(resumed.layers) == list(whole.layers)
    for name, layer in whole.layers.items():
        assert layer.codes.equal(resumed.layers[name].codes)
    assert resumed.overrides.keys() == whole.overrides.keys()
    assert all(value.equal(resumed.overrides[name]) for name, value in whole.overrides.items())


def test_other_frames_than_those_of_the_plan_are_refused(model, plan):
    other = calibration_set([tiny_observation(7)], model.processing, 1)
    with pytest.raises(ConfigurationError, match="not those that the plan was measured on"):
        reconstruct(model.network, plan, other)
