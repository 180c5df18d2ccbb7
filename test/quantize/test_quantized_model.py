"""What is evaluated is what is deployed: packed layers compute what the fake-quantized network does."""

from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import dequantize
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.registry import load_model
from qvla_ros.policy.policy import load_policy
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import calibration_set
from qvla_ros.quantize.pipeline import write_quantized
from qvla_ros.quantize.quantized_model import (
    GROUP_COLUMNS,
    LayerCodes,
    QuantizedModel,
    fake_quantized,
)
from qvla_ros.quantize.reconstruction import reconstruct
from qvla_ros.quantize.rounding import clipped_grid, codes_on, in_groups
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity
from qvla_ros.quantize.structure import feeds
from qvla_ros.quantize.widths import WIDTHS


def random_layer(columns=200, grouped=False, activation_bits=16, kept=None):
    generator = torch.Generator().manual_seed(5)
    layer = LinearLayer("a.layer", 40, columns, "language")
    weight = torch.randn(40, columns, generator=generator).bfloat16().float()
    stored = weight if kept is None else weight[:, kept.long()]
    row_bits = torch.tensor(WIDTHS, dtype=torch.uint8)[
        torch.randint(0, len(WIDTHS), (40,), generator=generator)
    ]
    codes = LayerCodes(layer, row_bits, stored, grouped)
    for bits, index in codes.rows_by_width():
        rows, energy = stored[index], torch.ones(stored.shape[1])
        if grouped:
            grid = in_groups(clipped_grid, rows, bits, energy, GROUP_COLUMNS)
            codes.put(index, grid, codes_on(rows, grid, bits, GROUP_COLUMNS))
        else:
            grid = clipped_grid(rows, bits, energy)
            codes.put(index, grid, codes_on(rows, grid, bits))
    return codes.finished(activation_bits, kept)


CASES = {
    "rows": {},
    "groups": {"grouped": True},
    "int8 inputs": {"activation_bits": 8},
    "removed columns": {"kept": torch.arange(0, 200, 3, dtype=torch.int32)},
    "all of it": {
        "grouped": True,
        "activation_bits": 8,
        "kept": torch.arange(20, 200, dtype=torch.int32),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_packed_layer_dequantizes_to_the_fake_quantized_weight_bit_for_bit(case):
    layer = random_layer(**CASES[case])
    assert dequantize(layer.packed).equal(layer.dequantize())


@pytest.mark.parametrize("case", CASES)
def test_a_packed_layer_answers_as_its_fake_quantized_twin(case):
    layer = random_layer(**CASES[case])
    twin = torch.nn.Linear(200, 40)
    network = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"layer": twin})})
    fake = fake_quantized(network, QuantizedModel({"a.layer": layer}))
    tokens = torch.randn(50, 200)
    packed = QuantizedLinear(layer.packed, twin.bias.detach())
    with torch.inference_mode():
        torch.testing.assert_close(
            packed(tokens), fake.get_submodule("a.layer")(tokens), rtol=1e-4, atol=1e-3
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def frames(model):
    return calibration_set([tiny_observation(seed) for seed in range(12)], model.processing, 12)


@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("bits", [1.2, 3.5])
def test_a_checkpoint_run_by_the_kernels_acts_as_the_fake_quantized_network(
    model, frames, tmp_path, bits, activation_bits
):
    metric = ActionMetric.uniform(8, 7)
    table = measure_sensitivity(model.network, frames, metric, MeasureSettings(probes=2))
    budget = BitBudget(average_bits_per_weight=bits)
    settings = AllocationSettings(feeds=tuple(feeds(model.network)))
    plan = allocate_bits(table, budget, settings=settings)
    if activation_bits == 8:
        plan = replace(plan, activation_bits={layer.name: 8 for layer in plan.layers})
    quantized = reconstruct(model.network, plan, frames)
    path = write_quantized(model, quantized, budget, tmp_path / "a.qvla.safetensors").path
    policy = load_policy(path, compute_dtype=torch.float32)
    fake = fake_quantized(model.network, quantized)
    for frame in frames.frames[:3]:
        with torch.inference_mode():
            expected = fake(frame)
        torch.testing.assert_close(
            policy.normalized_actions(frame), expected, rtol=1e-3, atol=2e-3
        )


def test_every_width_and_a_removed_column_occur_in_the_low_plan(model, frames):
    metric = ActionMetric.uniform(8, 7)
    table = measure_sensitivity(model.network, frames, metric, MeasureSettings(probes=2))
    plan = allocate_bits(
        table,
        BitBudget(average_bits_per_weight=1.2),
        settings=AllocationSettings(feeds=tuple(feeds(model.network))),
    )
    assert plan.bit_histogram[0] > 0
    assert plan.bit_histogram[2] > 0
