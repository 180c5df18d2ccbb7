"""From frames to a checkpoint: what is evaluated is what is deployed."""

import hashlib
from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.errors import BudgetError, ConfigurationError
from qvla_ros.kernels.reference import dequantize
from qvla_ros.models.registry import load_model
from qvla_ros.policy.policy import load_policy
from qvla_ros.quantize.bit_plan import BitBudget, uniform_plan
from qvla_ros.quantize.file_size import PlannedFile
from qvla_ros.quantize.pipeline import (
    calibrate,
    measure_model,
    plan_bits,
    quantize_model,
    write_quantized,
    write_weighed,
)
from qvla_ros.quantize.quantized_model import fake_quantized
from qvla_ros.quantize.sensitivity import MeasureSettings

FOUR = BitBudget(average_bits_per_weight=4.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, [tiny_observation(seed) for seed in range(4)], 4)


@pytest.fixture(scope="module")
def table(model, calibration):
    return measure_model(model, calibration, settings=MeasureSettings(probes=2))


@pytest.fixture(scope="module")
def quantized(model, calibration, table):
    """By a mixed plan, with int8 inputs in places."""
    plan = plan_bits(model, table, FOUR)
    plan = replace(plan, activation_bits={plan.layers[2].name: 8, plan.layers[-1].name: 8})
    assert len([bits for bits, rows in plan.bit_histogram.items() if rows]) >= 4
    return quantize_model(model, plan, calibration)


def test_packed_layers_equal_the_codes_bit_for_bit(model, quantized, tmp_path):
    write_quantized(model, quantized, FOUR, tmp_path / "c")
    packed = read_checkpoint(tmp_path / "c").layers
    for name, layer in quantized.layers.items():
        assert dequantize(packed[name]).equal(layer.dequantize()), name


def test_the_deployed_policy_acts_as_the_fake_quantized_network(model, quantized, tmp_path):
    path = write_quantized(model, quantized, FOUR, tmp_path / "c").path
    policy = load_policy(path, compute_dtype=torch.float32)
    twin = fake_quantized(model.network, quantized)
    inputs = model.processing.prepare(tiny_observation(9))
    torch.testing.assert_close(
        policy.normalized_actions(inputs), twin(inputs), rtol=1e-4, atol=1e-5
    )
    assert (twin(inputs) - model.network(inputs)).abs().max() > 1e-3


def test_a_candidate_that_was_weighed_is_the_checkpoint_that_is_written_at_once(
    model, quantized, tmp_path
):
    """So that its layers need not be held in memory while it is loaded and weighed."""
    figures = {"heldout_action_error": 0.25}
    whole = write_quantized(model, quantized, FOUR, tmp_path / "whole", figures)
    candidate = write_quantized(model, quantized, FOUR, tmp_path / "candidate").path
    weighed = write_weighed(candidate, figures, FOUR, tmp_path / "weighed")
    assert weighed.path.read_bytes() == whole.path.read_bytes()
    assert weighed.manifest.sha256 == whole.manifest.sha256
    tight = BitBudget(max_bytes=whole.file_bytes - 1)
    with pytest.raises(BudgetError, match="would take"):
        write_weighed(candidate, figures, tight, tmp_path / "tight")


def test_the_checkpoint_carries_processing_and_quality(model, calibration, table, tmp_path):
    kept = quantize_model(model, uniform_plan(table, 16), calibration)
    written = write_quantized(model, kept, FOUR, tmp_path / "c", {"heldout_action_error": 0.25})
    assert written.manifest.quality == {"heldout_action_error": 0.25}
    policy = load_policy(written.path)
    assert policy.processing.settings == model.processing.settings


def test_the_same_input_gives_the_same_bytes(model, calibration, table, quantized, tmp_path):
    first = write_quantized(model, quantized, FOUR, tmp_path / "one").path
    plan = plan_bits(model, measure_again(model, calibration), FOUR)
    plan = replace(
        plan, activation_bits=dict.fromkeys((plan.layers[2].name, plan.layers[-1].name), 8)
    )
    again = quantize_model(model, plan, calibration)
    second = write_quantized(model, again, FOUR, tmp_path / "two").path
    one, two = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second))
    assert one == two


def measure_again(model, calibration):
    return measure_model(model, calibration, settings=MeasureSettings(probes=2))


@pytest.mark.parametrize("limit", [225_000, 250_000, 264_001])
def test_a_budget_of_bytes_is_filled_but_not_exceeded(model, calibration, table, tmp_path, limit):
    plan = plan_bits(model, table, BitBudget(max_bytes=limit))
    kept = quantize_model(model, plan, calibration)
    quality = {f"heldout_figure_{index}": 1.2345678901234567e-05 for index in range(4)}
    written = write_quantized(model, kept, plan.budget, tmp_path / "c", quality)
    assert 0.995 * limit < written.file_bytes <= limit


def test_the_size_of_a_file_is_known_before_there_is_one(model, calibration, table, tmp_path):
    plan = plan_bits(model, table, FOUR)
    kept = quantize_model(model, plan, calibration)
    written = write_quantized(model, kept, plan.budget, tmp_path / "c")
    assert 0 <= PlannedFile(model).bytes_by(plan) - written.file_bytes <= 576


def test_bytes_that_are_too_few_for_any_plan_are_refused(model, table):
    with pytest.raises(BudgetError):
        plan_bits(model, table, BitBudget(max_bytes=PlannedFile(model).other_bytes + 2000))


def test_a_file_that_breaks_its_budget_of_bytes_is_not_written(model, quantized, tmp_path):
    with pytest.raises(BudgetError, match="the budget is 1000"):
        write_quantized(model, quantized, BitBudget(max_bytes=1000), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_tables_and_plans_of_another_model_are_refused(model, calibration, table):
    with pytest.raises(ConfigurationError, match="table is of another model"):
        plan_bits(model, replace(table, model_fingerprint="another"), FOUR)
    plan = replace(uniform_plan(table, 4), model_fingerprint="another")
    with pytest.raises(ConfigurationError, match="plan is of another model"):
        quantize_model(model, plan, calibration)


def test_frames_that_were_not_measured_are_refused(model, table):
    others = calibrate(model, [tiny_observation(seed) for seed in range(4, 8)], 4)
    with pytest.raises(ConfigurationError, match="not those that the plan was measured on"):
        quantize_model(model, uniform_plan(table, 4), others)
