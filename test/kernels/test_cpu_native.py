"""What only the C++ kernel does: blocks of tokens and columns, threads, addresses."""

import copy

import pytest
import torch

from qvla_ros.kernels.cpu_native import linear_cpu_native
from qvla_ros.kernels.native_library import native_library
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import dequantize, matmul_reference
from qvla_ros.kernels.workspace import spoil_workspace, workspace_bytes

pytestmark = pytest.mark.skipif(isinstance(native_library(), str), reason=str(native_library()))

ROWS = (4, 3, 0, 16, 2, 8, 4) * 16
"""Enough rows for several chunks of 48, and a tail of each tile."""


def inputs(batch: int, columns: int) -> torch.Tensor:
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(0)).bfloat16()


def assert_near_reference(y: torch.Tensor, x: torch.Tensor, packed) -> None:
    expected = matmul_reference(x, packed)
    bound = x.float().abs() @ dequantize(packed).abs().t() + x.float().abs().sum(1, True)
    assert bool(((y.float() - expected).abs() <= 2**-7 * bound).all())


@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    ("batch", "columns"),
    [
        (2, 512),
        (3, 513),
        (4, 1100),
        (5, 40),
        (16, 128),
        (32, 129),
        (48, 512),
        (63, 513),
        (65, 640),
        (255, 1024),
        (257, 130),
        (530, 7),
    ],
)
def test_any_number_of_tokens_and_columns_is_multiplied(
    batch, columns, groups, activation_bits, make_example
) -> None:
    packed = make_example(ROWS, columns, 1, groups, activation_bits=activation_bits).packed
    x = inputs(batch, columns)
    spoil_workspace()
    assert_near_reference(linear_cpu_native(x, LinearOperand.prepare(packed)), x, packed)


@pytest.mark.parametrize("batch", [3, 300])
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_threads_change_nothing(activation_bits, batch, make_example) -> None:
    packed = make_example(ROWS, 600, 1, activation_bits=activation_bits).packed
    operand, x = LinearOperand.prepare(packed), inputs(batch, 600)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(linear_cpu_native(x, operand))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_a_token_does_not_depend_on_its_neighbours(activation_bits, make_example) -> None:
    packed = make_example(ROWS, 300, 1, True, activation_bits=activation_bits).packed
    operand, x = LinearOperand.prepare(packed), inputs(70, 300)
    together = linear_cpu_native(x, operand)
    for first in (0, 11, 15, 16, 59, 65):
        window = slice(first, first + 5)  # fewer than five are multiplied in another order
        assert torch.equal(linear_cpu_native(x[window], operand), together[window])


def test_an_input_that_is_not_contiguous_is_read_as_it_is(make_example) -> None:
    packed = make_example(ROWS, 40, 1).packed
    operand, x = LinearOperand.prepare(packed), inputs(40, 40)
    assert torch.equal(
        linear_cpu_native(x.t(), operand), linear_cpu_native(x.t().clone(), operand)
    )


def test_no_token_gives_no_row(make_example) -> None:
    operand = LinearOperand.prepare(make_example(ROWS, 40, 1).packed)
    assert linear_cpu_native(inputs(0, 40), operand).shape == (0, len(ROWS))


def test_a_wide_bias_is_added_too(make_example) -> None:
    packed = make_example(ROWS, 40, 1).packed
    bias = torch.arange(len(ROWS)).float()
    x = torch.zeros(2, 40).bfloat16()
    y = linear_cpu_native(x, LinearOperand.prepare(packed, bias))
    assert torch.equal(y, bias.bfloat16().expand(2, -1))


def test_a_copy_of_a_layer_multiplies_by_its_own_weight(make_example) -> None:
    x = inputs(3, 130)
    layer = QuantizedLinear(make_example(ROWS, 130, 1).packed, kernel_name="cpu_native")
    before = layer(x)
    other = copy.deepcopy(layer)
    for buffer in layer.buffers():
        buffer.zero_()
    assert torch.equal(other(x), before)


def test_a_state_that_is_loaded_is_what_it_multiplies_by(make_example) -> None:
    x = inputs(3, 130)
    first, second = (
        QuantizedLinear(make_example(ROWS, 130, seed).packed, torch.ones(len(ROWS)).bfloat16())
        for seed in (1, 2)
    )
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_its_scratch_memory_does_not_grow_with_the_number_of_layers(make_example) -> None:
    x = inputs(64, 300)
    operands = [LinearOperand.prepare(make_example(ROWS, 300, seed).packed) for seed in range(3)]
    linear_cpu_native(x, operands[0])
    before = workspace_bytes()
    for operand in operands:
        linear_cpu_native(x, operand)
    assert workspace_bytes() == before


def test_weights_near_the_smallest_are_rounded_as_in_the_reference(make_example) -> None:
    packed = make_example((4, 8, 3), 16, 1).packed
    for segment in packed.segments:
        assert segment.scale is not None
        segment.scale.fill_(2.0**-128)
    y = linear_cpu_native(torch.eye(16).bfloat16(), LinearOperand.prepare(packed))
    normal = dequantize(packed, torch.bfloat16).abs() >= torch.finfo(torch.bfloat16).tiny
    assert torch.equal(y.t()[normal], dequantize(packed, torch.bfloat16)[normal])


def test_another_dtype_is_refused(make_example) -> None:
    operand = LinearOperand.prepare(make_example(ROWS, 40, 1).packed)
    with pytest.raises(ValueError, match="needs its library and bfloat16"):
        linear_cpu_native(torch.zeros(1, 40), operand)
