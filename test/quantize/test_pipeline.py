"""From a plan to a checkpoint: what is evaluated is what is deployed."""

import hashlib
from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation
from torch import nn

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.errors import BudgetError, CalibrationError, ConfigurationError
from qvla_ros.kernels.reference import dequantize
from qvla_ros.models.registry import load_model
from qvla_ros.policy.policy import load_policy
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, uniform_plan
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.packing import fake_quantize, linear_weight
from qvla_ros.quantize.pipeline import fixed_bytes, write_quantized
from qvla_ros.quantize.rounding import round_clipped, round_nearest
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity
from qvla_ros.quantize.storage import load_plan, load_table, save_plan, save_table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def table(model):
    frames = calibration_set([tiny_observation(s) for s in range(4)], model.processing, 4)
    metric = ActionMetric.uniform(8, 7)
    return measure_sensitivity(
        model.network, frames, metric, MeasureSettings(probes=2), model.fingerprint
    )


def test_packed_layers_equal_the_fake_quantized_weights_bit_for_bit(model, table, tmp_path):
    plan = allocate_bits(table, BitBudget(average_bits_per_weight=4.0))
    assert len([bits for bits, rows in plan.bit_histogram.items() if rows]) >= 4
    write_quantized(model, plan, tmp_path / "c")
    packed = read_checkpoint(tmp_path / "c").layers
    for layer in plan.layers:
        weight = linear_weight(model.network, layer)
        expected = fake_quantize(
            weight, plan.row_bits[layer.name], round_clipped, plan.input_energy[layer.name]
        )
        assert dequantize(packed[layer.name]).equal(expected), layer.name


def test_the_deployed_policy_acts_as_the_fake_quantized_network(model, table, tmp_path):
    plan = allocate_bits(table, BitBudget(average_bits_per_weight=4.0))
    path = write_quantized(model, plan, tmp_path / "c").path
    policy = load_policy(path, compute_dtype=torch.float32)
    fake = load_model(model_folder(tmp_path)).network
    for layer in plan.layers:
        module = fake.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        module.weight.data.copy_(
            fake_quantize(
                module.weight,
                plan.row_bits[layer.name],
                round_clipped,
                plan.input_energy[layer.name],
            )
        )
    inputs = model.processing.prepare(tiny_observation())
    torch.testing.assert_close(
        policy.normalized_actions(inputs), fake(inputs), rtol=1e-4, atol=1e-5
    )


def model_folder(tmp_path):
    return tiny_folder(tmp_path / "again")


def test_the_checkpoint_carries_the_processing(model, table, tmp_path):
    plan = uniform_plan(table, 16)
    path = write_quantized(model, plan, tmp_path / "c").path
    policy = load_policy(path, compute_dtype=torch.float32)
    assert policy.processing.settings == model.processing.settings
    inputs = policy.processing.prepare(tiny_observation())
    torch.testing.assert_close(
        policy.normalized_actions(inputs), model.network(inputs), rtol=1e-4, atol=1e-5
    )


def test_the_same_plan_gives_the_same_bytes(model, table, tmp_path):
    plan = allocate_bits(table, BitBudget(average_bits_per_weight=3.0))
    paths = [write_quantized(model, plan, tmp_path / name).path for name in ("one", "two")]
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert first == second


def test_a_budget_of_bytes_is_kept_by_the_whole_file(model, table, tmp_path):
    limit = fixed_bytes(model) + 60_000
    plan = allocate_bits(table, BitBudget(max_bytes=limit), fixed_bytes(model))
    written = write_quantized(model, plan, tmp_path / "c")
    assert written.file_bytes <= limit


def test_a_plan_that_breaks_its_budget_of_bytes_writes_nothing(model, table, tmp_path):
    plan = replace(uniform_plan(table, 16), budget=BitBudget(max_bytes=1000))
    with pytest.raises(BudgetError, match="the budget is 1000"):
        write_quantized(model, plan, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_model_is_refused(model, table, tmp_path):
    plan = replace(uniform_plan(table, 4), model_fingerprint="another")
    with pytest.raises(ConfigurationError, match="another model"):
        write_quantized(model, plan, tmp_path / "c")


def test_tables_and_plans_survive_their_files(model, table, tmp_path):
    save_table(table, tmp_path / "table")
    again = load_table(tmp_path / "table")
    assert again.layers == table.layers
    assert all(again.scores[name].equal(scores) for name, scores in table.scores.items())
    plan = allocate_bits(table, BitBudget(average_bits_per_weight=4.0))
    save_plan(plan, tmp_path / "plan")
    read = load_plan(tmp_path / "plan")
    assert read.budget == plan.budget
    assert all(read.row_bits[name].equal(bits) for name, bits in plan.row_bits.items())
    with pytest.raises(CalibrationError, match="plan file, not a sensitivity file"):
        load_table(tmp_path / "plan")
    (tmp_path / "plan").write_bytes(b"rubbish")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_plan(tmp_path / "plan")


def test_round_to_nearest_goes_the_same_way(model, table, tmp_path):
    plan = uniform_plan(table, 4)
    written = write_quantized(model, plan, tmp_path / "c", round_nearest)
    layer = plan.layers[5]
    expected = fake_quantize(
        linear_weight(model.network, layer),
        plan.row_bits[layer.name],
        round_nearest,
        plan.input_energy[layer.name],
    )
    assert dequantize(read_checkpoint(written.path).layers[layer.name]).equal(expected)
