"""The score against exact measurement, and the errors that protect it."""

import numpy as np
import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import CalibrationError
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.exact import RowStep, in_float64, measure_edits
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.score_check import spearman
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity
from qvla_ros.quantize.widths import GRID_WIDTHS, WIDTHS

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
    frames = frames_of(model, 6)
    seen = []
    measure_sensitivity(
        model.network, frames, METRIC, MeasureSettings(probes=16), on_layer=seen.append
    )
    rng = np.random.default_rng(0)
    chosen = [(one, row) for one in seen for row in rng.choice(one.layer.rows, 3)]
    for bits in (2, 4, 8):
        level = 1 + GRID_WIDTHS.index(bits)
        steps = [
            one.candidates.values()[level, row] - linear_weight(model.network, one.layer)[row]
            for one, row in chosen
        ]
        edits = [
            {one.layer.name: RowStep(torch.tensor([row]), step[None])}
            for (one, row), step in zip(chosen, steps, strict=True)
        ]
        with in_float64(model.network):
            exact = measure_edits(model.network, frames, METRIC, edits)
        scores = np.array([float(one.scores[row, WIDTHS.index(bits)]) for one, row in chosen])
        assert spearman(scores, exact) > 0.9
        # Not only the order: the score is the expected squared action change itself.
        assert 0.7 < np.median(scores / exact) < 1.4


def test_the_score_is_that_of_the_weight_gradient(model):
    """s[r,b] = <d(v.A)/dW_r, dW_r>^2: the same number by another road."""
    frames = frames_of(model, 1)
    settings = MeasureSettings(probes=1, seed=3, compensate=False)
    seen = {}
    table = measure_sensitivity(
        model.network,
        frames,
        METRIC,
        settings,
        on_layer=lambda one: seen.__setitem__(one.layer.name, one),
    )
    name = "language_model.model.layers.1.mlp.up_proj"
    weight = model.network.get_submodule(name).weight
    weight.requires_grad_(True)
    actions = model.network(frames.frames[0])
    probe = METRIC.probes(1, actions.detach(), torch.Generator().manual_seed(3))[0]
    (actions * probe).sum().backward()
    level = WIDTHS.index(4)
    step = seen[name].candidates.values()[1 + GRID_WIDTHS.index(4)] - weight.detach()
    expected = (weight.grad * step).sum(1).square()
    torch.testing.assert_close(
        table.scores[name][:, level].float(), expected, rtol=1e-3, atol=1e-12
    )
    assert not step.equal(torch.zeros_like(step))


def test_an_interrupted_measurement_goes_on_to_the_same_table(model, tmp_path):
    frames = frames_of(model, 4)
    whole = measure_sensitivity(model.network, frames, METRIC)

    class InterruptionError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        measure_sensitivity(
            model.network,
            frames,
            METRIC,
            on_progress=stop,
            journal=Journal(tmp_path / "j", {}, interval_s=0),
        )
    left = []
    resumed = measure_sensitivity(
        model.network,
        frames,
        METRIC,
        on_layer=left.append,
        journal=Journal(tmp_path / "j", {}, interval_s=0),
    )
    assert 0 < len(left) < len(whole.layers)
    for layer in whole.layers:
        assert resumed.scores[layer.name].equal(whole.scores[layer.name])
        assert resumed.token_weights[layer.name].equal(whole.token_weights[layer.name])


def test_batching_frames_changes_nothing_but_rounding(model, monkeypatch):
    together = measure(model, compensate=False)
    monkeypatch.setattr(
        "qvla_ros.quantize.calibration.CalibrationSet.batches", lambda self: list(self.frames)
    )
    alone = measure(model, compensate=False)
    for layer in together.layers:
        torch.testing.assert_close(
            together.scores[layer.name].sum(0), alone.scores[layer.name].sum(0), rtol=1e-3, atol=0
        )


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
    metric, generator = ActionMetric(weights), torch.Generator().manual_seed(0)
    probes = metric.probes(20_000, torch.zeros(1, 2, 2), generator).flatten(1)
    covariance = probes.T @ probes / len(probes)
    expected = torch.diag(weights.flatten() / 4)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.05)


def test_the_rows_that_compensation_helps_have_lower_scores(model):
    compensated, plain = measure(model), measure(model, compensate=False)
    low = WIDTHS.index(2)
    totals = [sum(float(s[:, low].sum()) for s in t.scores.values()) for t in (compensated, plain)]
    assert totals[0] < totals[1]
