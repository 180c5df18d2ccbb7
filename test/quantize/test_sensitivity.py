"""The score against exact measurement, and the errors that protect it."""

import numpy as np
import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import CalibrationError
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.exact import RowChoice, measure_rows_exactly, spearman
from qvla_ros.quantize.input_energy import measure_input_energy
from qvla_ros.quantize.rounding import round_clipped
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity

METRIC = ActionMetric.uniform(8, 7)


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_folder(tmp_path / "tiny"))


def frames_of(model, count):
    observations = [tiny_observation(seed) for seed in range(count)]
    return calibration_set(observations, model.processing, count)


def measure(model, frames=6, **settings):
    return measure_sensitivity(
        model.network, frames_of(model, frames), METRIC, MeasureSettings(**settings)
    )


def test_the_score_ranks_rows_as_exact_measurement_does(model):
    table = measure(model, probes=16)
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    rows = measure_rows_exactly(
        model.network, frames_of(model, 6), table, METRIC, round_clipped, RowChoice(60)
    )
    for bits in (2, 4, 8):
        pairs = np.array([(one.score, one.exact) for one in rows if one.bits == bits])
        assert spearman(pairs[:, 0], pairs[:, 1]) > 0.9
        # Not only the order: the score is the expected squared action change itself.
        assert 0.7 < np.median(pairs[:, 0] / pairs[:, 1]) < 1.4
    for name, value in model.network.named_parameters():
        assert value.equal(before[name]), f"{name} was not restored"


def test_the_score_is_that_of_the_weight_gradient(model):
    """s[r,b] = <d(v.A)/dW_r, dW_r>^2: the same number by another road."""
    table = measure(model, frames=1, probes=1, seed=3)
    name = "language_model.model.layers.1.mlp.up_proj"
    weight = model.network.get_submodule(name).weight
    weight.requires_grad_(True)
    probe = METRIC.probes(1, torch.Generator().manual_seed(3))[0]
    (model.network(frames_of(model, 1).frames[0])[0] * probe).sum().backward()
    grid = round_clipped(weight.detach(), 4, table.input_energy[name])
    step = grid.dequantize() - weight.detach()
    expected = (weight.grad * step).sum(1).square()
    torch.testing.assert_close(table.scores[name][:, 2].float(), expected, rtol=1e-3, atol=1e-12)


def test_the_same_seed_gives_the_same_table(model):
    first, second, other = measure(model), measure(model), measure(model, seed=1)
    names = [layer.name for layer in first.layers]
    assert all(first.scores[name].equal(second.scores[name]) for name in names)
    assert not all(first.scores[name].equal(other.scores[name]) for name in names)


def test_sixteen_bits_cost_nothing_and_fewer_bits_cost_more_on_the_whole(model):
    scores = torch.cat(list(measure(model).scores.values()))
    assert not scores[:, -1].any()
    totals = scores.sum(0).tolist()
    assert totals == sorted(totals, reverse=True)


def test_a_layer_that_gets_no_gradient_is_an_error(model):
    block = model.network.vision_backbone.featurizer.blocks[1]
    block.ls2.scale_factor.data.zero_()
    with pytest.raises(
        CalibrationError, match=r"no gradient reached .*featurizer\.blocks\.1\.mlp"
    ):
        measure(model)


def test_a_layer_that_never_runs_is_an_error(model):
    tower = model.network.vision_backbone.featurizer
    tower.blocks[1].forward = lambda tokens: tokens
    with pytest.raises(CalibrationError, match="never ran"):
        measure(model)


def test_a_score_that_is_not_finite_is_an_error(model):
    model.network.vision_backbone.featurizer.blocks[0].attn.qkv.weight.data[0, 0] = torch.inf
    with pytest.raises(CalibrationError, match="not finite"):
        measure(model)


def test_the_network_is_left_as_it_was(model):
    measure(model)
    modules = model.network.modules()
    assert not any(module._forward_hooks for module in modules)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_too_few_frames_are_refused(model):
    with pytest.raises(CalibrationError, match="the bags hold 1"):
        calibration_set([tiny_observation()], model.processing, 2)


def test_probes_average_to_the_metric():
    weights = torch.tensor([[1.0, 4.0], [0.0, 2.0]])
    probes = ActionMetric(weights).probes(20_000, torch.Generator().manual_seed(0)).flatten(1)
    covariance = probes.T @ probes / len(probes)
    expected = torch.diag(weights.flatten() / 4)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.05)


def test_the_energy_of_inputs_is_their_mean_square(model):
    frames = frames_of(model, 2)
    seen = []
    name = "language_model.model.layers.0.mlp.down_proj"
    module = model.network.get_submodule(name)
    hook = module.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0][0]))
    energy = measure_input_energy(model.network, frames)
    hook.remove()
    torch.testing.assert_close(energy[name], torch.cat(seen).square().mean(0))


def test_the_rank_correlation_shares_ranks_among_ties():
    first = np.array([3.0, 1.0, 3.0, 2.0])
    assert spearman(first, first**3) == pytest.approx(1)
    assert spearman(first, -first) == pytest.approx(-1)
    # Ranks 2.5, 0, 2.5, 1 against 0, 1, 2, 3, worked out by hand.
    assert spearman(first, np.arange(4.0)) == pytest.approx(-1.0 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman(first[:1], first[:1]))
