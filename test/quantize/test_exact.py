"""Exact action changes, against the network with really changed weights."""

import math

import numpy as np
import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.exact import RowStep, in_float64, measure_edits
from qvla_ros.quantize.score_check import (
    RowChoice,
    RowMeasurement,
    as_text,
    check_scores,
    kind_of,
    measure_rows,
    rank_correlations,
    spearman,
)
from qvla_ros.quantize.sensitivity import MeasureSettings
from qvla_ros.quantize.widths import WIDTHS

METRIC = ActionMetric.uniform(8, 7)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny")).network


@pytest.fixture(scope="module")
def calibration(network, tmp_path_factory):
    model = load_model(tiny_folder(tmp_path_factory.mktemp("again") / "tiny"))
    frames = [model.processing.prepare(tiny_observation(seed)) for seed in range(3)]
    longer = frames[2]  # one frame with another number of tokens
    tokens = torch.cat([longer.token_ids, longer.token_ids[:, -2:]], dim=1)
    other = type(longer)(longer.pixels, tokens, longer.end_token_id, longer.state)
    return CalibrationSet((*frames[:2], other), "frames")


def random_steps(network, seed, size=0.05, rows=2):
    """One edit of every layer: a few of its rows moved at random."""
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for layer in network.linear_layers():
        index = torch.randperm(layer.rows, generator=generator)[:rows]
        step = size * torch.randn(rows, layer.columns, generator=generator)
        edits.append({layer.name: RowStep(index, step)})
    return edits


def by_hand(network, calibration, edit):
    """Change the weights, run the network frame by frame, and change them back (float64)."""

    def actions():
        with torch.inference_mode():
            return [
                network(
                    type(one)(
                        one.pixels.double(), one.token_ids, one.end_token_id, one.state.double()
                    )
                )
                for one in calibration.frames
            ]

    before = actions()
    originals = {}
    for name, step in edit.items():
        weight = network.get_submodule(name).weight.data
        originals[name] = weight.clone()
        weight[step.rows] += step.step.double()
    after = actions()
    for name, weight in originals.items():
        network.get_submodule(name).weight.data.copy_(weight)
    pairs = zip(after, before, strict=True)
    return np.mean([METRIC.squared_error(*pair).item() for pair in pairs])


def test_every_layer_changes_the_action_as_with_really_changed_weights(network, calibration):
    edits = random_steps(network, 0)
    with in_float64(network):
        measured = measure_edits(network, calibration, METRIC, edits, samples=7)
        expected = [by_hand(network, calibration, edit) for edit in edits]
    assert (measured > 0).all()
    np.testing.assert_allclose(measured, expected, rtol=1e-8)


def test_layers_far_apart_can_be_edited_together(network, calibration):
    single = random_steps(network, 1)
    groups = [
        {**single[0], **single[-1]},
        {name: step for edit in single[5:20] for name, step in edit.items()},
        {name: step for edit in single for name, step in edit.items()},
    ]
    with in_float64(network):
        measured = measure_edits(network, calibration, METRIC, groups)
        expected = [by_hand(network, calibration, edit) for edit in groups]
    np.testing.assert_allclose(measured, expected, rtol=1e-8)


def test_a_whole_layer_can_be_edited_by_any_function(network, calibration):
    name = "language_model.model.layers.0.mlp.down_proj"
    weight = network.get_submodule(name).weight.detach()
    whole = {name: RowStep(torch.arange(len(weight)), -weight.clone())}
    silent = {name: lambda inputs, outputs: torch.zeros_like(outputs)}
    with in_float64(network):
        first, second = measure_edits(network, calibration, METRIC, [whole, silent])
    assert first == pytest.approx(second, rel=1e-9)


def test_float64_runs_throughout_so_that_tiny_changes_stay_quadratic(network, calibration):
    """At a step of 1e-9 float32 anywhere in the network would drown the change in noise."""
    large, small = (random_steps(network, 2, size) for size in (1e-6, 1e-9))
    with in_float64(network):
        coarse, fine = (measure_edits(network, calibration, METRIC, e) for e in (large, small))
    np.testing.assert_allclose(fine * 1e6, coarse, rtol=1e-3)


def test_float32_is_enough_for_large_changes(network, calibration):
    edits = random_steps(network, 3)
    rough = measure_edits(network, calibration, METRIC, edits)
    with in_float64(network):
        exact = measure_edits(network, calibration, METRIC, edits)
    np.testing.assert_allclose(rough, exact, rtol=1e-2)


def test_the_network_is_as_it_was_even_after_an_interruption(network, calibration):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    frame = calibration.frames[0]
    actions = network(frame)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), in_float64(network):
        edits = random_steps(network, 4)
        measure_edits(network, calibration, METRIC, edits, on_progress=interrupt)
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert value.equal(before[name]), name
    assert all(value.equal(buffers[name]) for name, value in network.named_buffers())
    assert not any(module._forward_hooks for module in network.modules())
    assert network(frame).equal(actions)


def test_a_network_that_could_not_be_restored_is_refused(network):
    weight = network.action_head.model.fc1.weight
    weight.data = weight.data.bfloat16()
    with pytest.raises(ValueError, match=r"action_head\.model\.fc1\.weight is torch\.bfloat16"):
        in_float64(network).__enter__()
    weight.data = weight.data.float()


def test_an_edit_of_an_unknown_layer_is_refused(network, calibration):
    with pytest.raises(ValueError, match=r"no stage of the network runs the layer 'projector'"):
        measure_edits(network, calibration, METRIC, [{"projector": lambda x, y: y}])


def test_progress_ends_with_everything_done(network, calibration):
    seen = []
    measure_edits(
        network,
        calibration,
        METRIC,
        random_steps(network, 5),
        on_progress=lambda *counts: seen.append(counts),
    )
    layers = len(network.linear_layers())
    assert seen[-1] == (layers, layers)
    assert seen == sorted(seen)


def test_rows_are_measured_at_each_width_and_restored(network, calibration):
    def rounded(name, rows, bits):
        weight = network.get_submodule(name).weight.detach()[rows].float()
        return weight * (1 + 2.0**-bits)

    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = measure_rows(network, calibration, METRIC, rounded, RowChoice(15))
    assert [one.bits for one in measured] == [2, 4, 8] * 15
    exact = np.array([one.exact for one in measured]).reshape(15, 3)
    assert (exact[:, 0] > exact[:, 1]).all()
    assert (exact[:, 1] > exact[:, 2]).all()
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_the_same_seed_draws_the_same_rows(network):
    layers = network.linear_layers()
    first, second, other = (RowChoice(40, seed=seed).draw(layers) for seed in (0, 0, 1))
    assert first == second != other
    assert len(set(first)) == 40
    rows = sum(layer.rows for layer in layers)
    assert len(RowChoice(10**6).draw(layers)) == rows


def test_the_score_ranks_rows_as_exact_measurement_does(network, calibration):
    """The rows' exact changes are those of the very steps that were scored."""

    def rival(evidence):
        return {"reversed": -evidence.scores}

    before = {name: value.clone() for name, value in network.state_dict().items()}
    strata = check_scores(
        network, calibration, METRIC, MeasureSettings(probes=32), RowChoice(120), rival
    )
    for one in strata[:3]:
        assert (one.part, one.rows) == ("all", 120)
        assert one.spearman["ours"] > 0.9
        assert one.spearman["reversed"] == -one.spearman["ours"]
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def measurements():
    """Twenty rows in two kinds of layers, exact changes 0 .. 19 and their score tables."""
    layers = [
        LinearLayer("vision_backbone.f.blocks.0.mlp.fc1", 10, 4, "vision"),
        LinearLayer("language_model.model.layers.0.mlp.up_proj", 10, 4, "language"),
    ]
    measured = [
        RowMeasurement(layer, row, 4, 10.0 * index + row)
        for index, layer in enumerate(layers)
        for row in range(10)
    ]
    good = {layer.name: torch.zeros(10, len(WIDTHS)) for layer in layers}
    for one in measured:
        good[one.layer.name][one.row, WIDTHS.index(4)] = one.exact**3
    bad = {name: -table for name, table in good.items()}
    return measured, {"ours": good, "theirs": bad}


def test_rank_correlations_are_told_by_stratum_and_score():
    measured, tables = measurements()
    strata = rank_correlations(measured, tables)
    assert [(one.part, one.kind, one.rows) for one in strata] == [
        ("all", "all", 20),
        ("vision", "mlp in", 10),
        ("language", "up_proj", 10),
    ]
    assert all(one.spearman == {"ours": 1.0, "theirs": -1.0} for one in strata)
    assert "mlp in" in as_text(strata)
    assert len(as_text(strata).splitlines()) == 4


def test_a_stratum_of_a_few_rows_claims_no_correlation():
    measured, tables = measurements()
    assert rank_correlations(measured[:4], tables)[0].spearman == {"ours": None, "theirs": None}


def test_kinds_of_layers_have_one_name_each(network):
    kinds = {kind_of(layer) for layer in network.linear_layers()}
    expected = {"patch embed", "attn qkv", "attn out", "mlp in", "mlp out"}
    expected |= {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert kinds == expected


def test_the_rank_correlation_shares_ranks_among_ties():
    first = np.array([3.0, 1.0, 3.0, 2.0])
    assert spearman(first, first**3) == pytest.approx(1)
    assert spearman(first, -first) == pytest.approx(-1)
    # Ranks 2.5, 0, 2.5, 1 against 0, 1, 2, 3, worked out by hand.
    assert spearman(first, np.arange(4.0)) == pytest.approx(-1.0 / math.sqrt(4.5 * 5))
    assert np.isnan(spearman(first[:1], first[:1]))
