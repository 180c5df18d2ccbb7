"""The packed replacement of ``nn.Linear`` as a module."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import dequantize, linear_reference

BITS = (4, 0, 2, 16, 8, 4, 2, 16, 0, 8)


@pytest.fixture
def example(make_example):
    return make_example(BITS, 130, 0)


@pytest.fixture
def bias():
    return torch.arange(10).bfloat16()


@pytest.mark.parametrize("shape", [(130,), (3, 130), (2, 3, 130), (0, 130)])
def test_it_is_a_linear_over_the_last_dimension(example, bias, shape) -> None:
    layer = QuantizedLinear(example.packed, bias)
    x = torch.randn(shape).bfloat16()
    expected = F.linear(x, dequantize(example.packed, torch.bfloat16), bias)
    assert torch.equal(layer(x), expected)


def test_it_runs_in_inference_mode(example) -> None:
    layer = QuantizedLinear(example.packed)
    with torch.inference_mode():
        assert layer(torch.ones(2, 130)).shape == (2, 10)


def test_an_input_that_needs_a_gradient_gives_a_result_without_one(example) -> None:
    x = torch.ones(1, 130, requires_grad=True)
    assert not QuantizedLinear(example.packed)(x).requires_grad


def test_it_has_no_parameters_and_holds_the_packed_tensors_without_a_copy(example) -> None:
    layer = QuantizedLinear(example.packed)
    assert list(layer.parameters()) == []
    held = {buffer.data_ptr() for buffer in layer.buffers()}
    for segment in example.packed.segments:
        assert segment.codes.data_ptr() in held


def test_its_memory_is_the_packed_bytes_the_bias_and_two_indices_a_row(example, bias) -> None:
    layer = QuantizedLinear(example.packed, bias)
    indices = 2 * 4 * 10 - example.packed.row_order.nbytes  # which is part of one of them
    assert layer.memory_bytes() == example.packed.nbytes + bias.nbytes + indices


def test_its_state_survives_a_copy(example, bias) -> None:
    layer = QuantizedLinear(example.packed, bias)
    x = torch.randn(2, 130)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_loading_a_state_changes_what_it_computes(example, make_example, bias) -> None:
    layer = copy.deepcopy(QuantizedLinear(example.packed, bias))
    other = QuantizedLinear(make_example(BITS, 130, 1).packed, -bias)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(2, 130)
    assert torch.equal(layer(x), other(x))


def test_a_cast_to_bfloat16_is_harmless_and_one_to_float32_is_refused(example, bias) -> None:
    x = torch.randn(2, 130).bfloat16()
    network = nn.Sequential(QuantizedLinear(example.packed, bias))
    expected = network(x)
    assert torch.equal(network.to(torch.bfloat16)(x), expected)
    with pytest.raises(ValueError, match=r"was cast.*must be torch.bfloat16"):
        network.float()(x)


def test_a_wrong_number_of_columns_is_refused_by_name(example) -> None:
    with pytest.raises(ValueError, match=r"layer: the input must end in 130 columns"):
        QuantizedLinear(example.packed)(torch.ones(2, 129))


def test_the_kernel_can_be_forced(example) -> None:
    forced = QuantizedLinear(example.packed, kernel_name="reference")
    assert forced.kernel_for(torch.ones(1, 130)).name == "reference"
    x = torch.randn(3, 130)
    torch.testing.assert_close(forced(x), QuantizedLinear(example.packed)(x))


def test_an_unknown_kernel_is_refused_when_the_layer_is_made(example) -> None:
    with pytest.raises(ConfigurationError, match="no kernel 'magic'"):
        QuantizedLinear(example.packed, kernel_name="magic")


def test_it_prints_its_shape_and_width(example) -> None:
    assert "130 -> 10, 6.00 bits, kernel=auto" in repr(QuantizedLinear(example.packed))


def test_the_activation_bits_and_the_input_columns_survive_a_copy(make_example, bias) -> None:
    packed = make_example(BITS, 130, 0, groups=True, step=3, activation_bits=8).packed
    layer = copy.deepcopy(QuantizedLinear(packed, bias))
    assert layer.packed.activation_bits == 8
    x = torch.randn(3, 130)
    expected = linear_reference(x, LinearOperand.prepare(packed, bias))
    torch.testing.assert_close(layer(x), expected)


def test_removed_columns_count_in_its_memory(make_example) -> None:
    packed = make_example(BITS, 130, 0, step=2).packed
    indices = 2 * 4 * 10 - packed.row_order.nbytes
    assert QuantizedLinear(packed).memory_bytes() == packed.nbytes + indices
