"""Every method meets every budget with a file that says what its float twin says."""

import copy
import math

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import BudgetError
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.pipeline import write_quantized
from qvla_ros.quantize.quantized_model import fake_quantized
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.evidence import (
    GAUSS_NEWTON,
    NORM_PRODUCT,
    QVLA_CODE,
    TABLES,
    Evidence,
)
from qvla_ros.quantize.rivals.folding import (
    changed_parameters,
    feeder_groups,
    fold,
    norm_groups,
)
from qvla_ros.quantize.rivals.registry import METHODS, REFERENCE
from qvla_ros.quantize.rivals.scores import inverse_factor_scores, row_errors
from qvla_ros.quantize.sensitivity import MeasureSettings
from qvla_ros.quantize.widths import WIDTHS

FILE_LIMIT = BitBudget(average_bits_per_weight=16.0)


@pytest.fixture(scope="module")
def contest(tmp_path_factory) -> Contest:
    folder = tmp_path_factory.mktemp("contest")
    model = load_model(tiny_folder(folder / "model"))
    observations = [tiny_observation(seed) for seed in range(4)]
    calibration = calibration_set(observations, model.processing, 4)
    evidence = Evidence(folder / "evidence")
    evidence.measure(
        model.network,
        calibration,
        ActionMetric.uniform(8, 7),
        MeasureSettings(probes=2),
        model.fingerprint,
    )
    return Contest(model, calibration, evidence, folder)


def answers(network, contest) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in contest.calibration.batches()])


def error_of(contest, quantized) -> float:
    change = answers(fake_quantized(contest.network, quantized), contest)
    return float((change - answers(contest.network, contest)).abs().mean())


@pytest.mark.parametrize("bits", [8.0, 3.5])
@pytest.mark.parametrize("name", [name for name in METHODS if name != REFERENCE])
def test_every_method_meets_the_bytes_of_round_to_nearest(contest, tmp_path, name, bits):
    budget = contest.budget_bytes(bits)
    before = {key: value.clone() for key, value in contest.network.state_dict().items()}
    quantized = METHODS[name].make(contest).quantize(budget)
    written = write_quantized(contest.model, quantized, FILE_LIMIT, tmp_path / "file")
    assert written.file_bytes <= budget
    assert math.isfinite(error_of(contest, quantized))
    for key, value in contest.network.state_dict().items():
        assert torch.equal(value, before[key]), f"{name} changed {key} of the float network"


@pytest.mark.parametrize("name", ["rtn", "awq", "gptq", "qvla-code", "ours"])
def test_the_same_question_has_the_same_answer(contest, name):
    budget = contest.budget_bytes(4.0)
    first, second = (METHODS[name].make(contest).quantize(budget) for _ in range(2))
    for layer, other in zip(first.layers.values(), second.layers.values(), strict=True):
        assert torch.equal(layer.codes, other.codes)
        assert torch.equal(layer.grid.scale, other.grid.scale)


def test_the_bytes_of_a_plan_are_those_of_the_file_that_is_written(contest, tmp_path):
    plan = contest.spread(contest.budget_bytes(6.0))
    quantized = METHODS["rtn"].make(contest).quantize(contest.budget_bytes(6.0))
    written = write_quantized(contest.model, quantized, FILE_LIMIT, tmp_path / "file")
    assert contest.file_bytes(plan) == written.file_bytes == contest.budget_bytes(6.0)


def test_bytes_that_nothing_fits_are_refused(contest):
    for name in ("rtn", "awq", "rtn-g128-clip"):
        with pytest.raises(BudgetError):
            METHODS[name].make(contest).quantize(1000)


def test_smoothquant_and_awq_change_no_answer_before_they_round(contest):
    twin = copy.deepcopy(contest.network)
    generator = torch.Generator().manual_seed(0)
    groups = [*norm_groups(twin), *feeder_groups(twin)]
    for group in groups:
        columns = linear_weight(twin, layer_of(contest, group.layers[0])).shape[1]
        scale = torch.exp(torch.randn(columns, generator=generator))
        fold(twin, group, scale)
    assert len(groups) == 2 * 2 * (2 + 1) + 2 * 4  # towers: norms and values; llama: those and up
    changed = changed_parameters(contest.network, twin)
    assert changed
    assert all(torch.equal(one, one.to(torch.bfloat16).float()) for one in changed.values())
    # The biases of the norms are stored in BF16: equal to that rounding, not to float32's.
    torch.testing.assert_close(
        answers(twin, contest), answers(contest.network, contest), atol=0.02, rtol=0.02
    )


def layer_of(contest, name):
    return next(layer for layer in contest.layers if layer.name == name)


def test_smoothquant_rounds_all_inputs_to_eight_bits(contest):
    quantized = METHODS["smoothquant"].make(contest).quantize(contest.budget_bytes(8.0))
    assert {layer.packed.activation_bits for layer in quantized.layers.values()} == {8}


def test_scales_of_groups_are_charged(contest):
    budget = contest.budget_bytes(4.0)
    rows, groups = (contest.spread(budget, grouped) for grouped in (False, True))
    assert contest.file_bytes(groups, grouped=True) <= budget
    assert contest.file_bytes(groups, grouped=True) >= contest.file_bytes(groups)
    assert rows.average_bits_per_weight >= groups.average_bits_per_weight


def test_qvla_has_no_rows_of_three_bits(contest):
    for name in ("qvla-code", "qvla-paper", "ours-no-3bit"):
        quantized = METHODS[name].make(contest).quantize(contest.budget_bytes(3.5))
        widths = {bits for one in quantized.layers.values() for bits in one.row_bits.tolist()}
        assert widths <= {0, 2, 4, 8, 16}


def test_gptq_leaves_less_output_error_than_rounding_on_its_grid(contest):
    """On the inputs of the quantized network, which for the first layer are the float inputs."""
    first = contest.layers[0]
    moment = contest.evidence.inputs(first).moment
    weight = linear_weight(contest.network, first)
    done = METHODS["gptq"].make(contest).quantize(contest.budget_bytes(4.0)).layers[first.name]
    from qvla_ros.quantize.rounding import codes_on, values_of

    compensated, nearest = (
        float(row_errors((values_of(codes, done.grid) - weight)[None], moment).sum())
        for codes in (done.codes, codes_on(weight, done.grid, 4))
    )
    assert compensated < nearest


def test_all_four_score_tables_cover_all_rows(contest):
    for name in TABLES:
        table = contest.evidence.table(name)
        for layer in contest.layers:
            scores = table.scores[layer.name]
            assert scores.shape == (layer.rows, len(WIDTHS))
            assert torch.isfinite(scores).all()
            assert (scores >= 0).all()
            assert not scores[:, -1].any()


def test_the_norm_product_bounds_the_gauss_newton_score(contest):
    """Cauchy-Schwarz holds frame by frame; the means over frames obey it but for their spread."""
    ours, bound = (contest.evidence.table(name) for name in (GAUSS_NEWTON, NORM_PRODUCT))
    total = sum(float(ours.scores[layer.name].sum()) for layer in contest.layers)
    above = sum(float(bound.scores[layer.name].sum()) for layer in contest.layers)
    assert above > total


def test_the_score_of_qvlas_code_is_that_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 5, generator=generator)
    moment = inputs.T @ inputs / 64
    step = torch.randn(1, 3, 5, generator=generator)
    damped = moment.double() + 0.01 * moment.diagonal().mean() * torch.eye(5)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).diagonal()
    expected = [
        sum(float(step[0, r, j]) ** 2 / float(factor[j]) ** 2 for j in range(5)) for r in range(3)
    ]
    scores = inverse_factor_scores(step, moment)
    assert scores[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_scores_of_qvlas_code_do_not_know_the_action(contest):
    """They would be the same for a network whose head answers nothing; ours would not."""
    table = contest.evidence.table(QVLA_CODE)
    layer = contest.layers[0]
    from qvla_ros.quantize.rounding import codes_on, nearest_grid, values_of

    weight = linear_weight(contest.network, layer)
    grid = nearest_grid(weight, 4, torch.ones(layer.columns))
    step = values_of(codes_on(weight, grid, 4), grid) - weight
    alone = inverse_factor_scores(step[None], contest.evidence.inputs(layer).moment)
    torch.testing.assert_close(table.scores[layer.name][:, WIDTHS.index(4)], alone[:, 0])


def test_input_statistics_are_those_of_the_inputs(contest):
    layer = contest.layers[0]
    seen = []
    handle = contest.network.get_submodule(layer.name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].reshape(-1, layer.columns))
    )
    answers(contest.network, contest)
    handle.remove()
    tokens = torch.cat(seen)
    found = contest.evidence.inputs(layer)
    torch.testing.assert_close(found.moment, tokens.T @ tokens / len(tokens))
    torch.testing.assert_close(found.peak, tokens.abs().amax(0))
    torch.testing.assert_close(found.magnitude, tokens.abs().mean(0))


def test_a_plan_fills_its_budget_whatever_the_header_takes(contest):
    """The header grows with the number of widths; what it does not take belongs to the rows."""
    budget = contest.budget_bytes(4.0)
    sizes = []

    def plan_of(row_bytes):
        plan = allocate_bits(contest.evidence.table(GAUSS_NEWTON), BitBudget(max_bytes=row_bytes))
        sizes.append(contest.file_bytes(plan))
        return plan

    plan = contest.fitted(budget, plan_of)
    assert contest.file_bytes(plan) == max(size for size in sizes if size <= budget)
    assert contest.file_bytes(plan) > 0.99 * budget
