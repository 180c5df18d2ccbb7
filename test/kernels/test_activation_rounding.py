"""Layers of 8-bit activations: the exact reference against its definition, kernels against it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FORMS, KERNELS, MIXES, WIDTHS, kernel_here

from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.reference import dequantize, matmul_reference
from qvla_ros.kernels.workspace import spoil_workspace

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Error of a product, relative to the product of the magnitudes of codes and zeros."""


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Per row: the nearest of 255 multiples of a 127th of the largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return torch.where(scale > 0, (x / scale).round() * scale, 0.0)


def product_by_definition(x: torch.Tensor, example) -> torch.Tensor:
    """In float64: rows of codes multiply the rounded input, rows of 16 bits the input itself."""
    kept = example.packed.input_columns
    if kept is not None:
        x, removed = torch.zeros_like(x), x
        x[:, kept.long()] = removed[:, kept.long()]
    weight = example.fake_quantized.double()
    whole = (example.packed.bits_per_row() == 16)[None, :]
    return torch.where(whole, x.double() @ weight.t(), rounded(x).double() @ weight.t())


@settings(deadline=None)
@given(
    row_bits=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=9).map(tuple),
    columns=st.integers(1, 300),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    groups=st.booleans(),
    step=st.integers(1, 3),
)
def test_the_reference_multiplies_the_rounded_input_by_the_weight(
    make_example, row_bits, columns, batch, seed, groups, step
) -> None:
    example = make_example(row_bits, columns, seed, groups, step, 8)
    x = torch.randn(batch, columns, generator=torch.Generator().manual_seed(seed))
    expected = product_by_definition(x, example)
    magnitude = x.abs() @ example.fake_quantized.abs().t()
    assert bool(((matmul_reference(x, example.packed) - expected).abs() <= 1e-5 * magnitude).all())


def magnitudes(x: torch.Tensor, packed) -> torch.Tensor:
    """What a kernel adds up at most: codes and zeros separately, not their difference."""
    bits = packed.bits_per_row()
    largest = torch.tensor([2.0**b - 1 if b < 16 else 0 for b in bits.tolist()]).double()
    per_row = torch.zeros(packed.rows, dtype=torch.float64)
    start = 0
    for segment in packed.segments:
        rows = packed.row_order[start : start + segment.rows].long()
        start += segment.rows
        if segment.scale is not None:
            scale = segment.scale.double().view(segment.rows, -1).amax(1)
            zero = segment.zero.double().view(segment.rows, -1).abs().amax(1)
            per_row[rows] = scale * (largest[rows] + zero)
    x = x.double().abs()
    return x @ dequantize(packed).double().abs().t() + x.sum(1, keepdim=True) * per_row


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize(("batch", "bias"), [(1, True), (4, False), (17, True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("name", "dtype"), KERNELS)
def test_a_kernel_gives_what_the_reference_gives(
    name, mix, form, bias, batch, dtype, make_example
) -> None:
    columns, groups, step = FORMS[form]
    packed = make_example(MIXES[mix], columns, 1, groups, step, 8).packed
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, columns, generator=generator).to(dtype)
    vector = torch.randn(packed.rows, generator=generator).to(dtype) if bias else None
    kernel = kernel_here(name, dtype, 8)
    spoil_workspace()
    y = kernel(x, LinearOperand.prepare(packed, vector))
    assert y.dtype == dtype
    expected = matmul_reference(x, packed)
    magnitude = magnitudes(x, packed)
    if vector is not None:
        expected += vector.float()
        magnitude += vector.float().abs()
    assert bool(((y.float() - expected).abs() <= ROUNDING[dtype] * magnitude).all())


@pytest.mark.parametrize(("name", "dtype"), KERNELS)
def test_halves_are_rounded_to_the_even_integer(name, dtype, make_example) -> None:
    packed = make_example((8,), 4, 0, activation_bits=8).packed
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5]], dtype=dtype)
    same = torch.tensor([[127.0, 0.0, 2.0, -2.0]], dtype=dtype)
    kernel = kernel_here(name, dtype, 8)
    operand = LinearOperand.prepare(packed)
    assert torch.equal(kernel(x, operand), kernel(same, operand))


@pytest.mark.parametrize(("name", "dtype"), KERNELS)
def test_a_row_of_zeros_gives_the_bias_and_one_that_is_not_finite_is_seen(
    name, dtype, make_example
) -> None:
    packed = make_example((8, 2, 4), 130, 0, activation_bits=8).packed
    bias = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    x = torch.zeros(3, 130, dtype=dtype)
    x[1, 7], x[2, 7] = float("inf"), float("nan")
    kernel = kernel_here(name, dtype, 8)
    y = kernel(x, LinearOperand.prepare(packed, bias))
    assert torch.equal(y[0], bias)
    assert not bool(torch.isfinite(y[1:]).any())


def test_each_row_of_the_input_has_its_own_scale(make_example) -> None:
    packed = make_example((2, 3, 4, 8), 130, 0, activation_bits=8).packed
    x = torch.randn(2, 130)
    alone = matmul_reference(x[:1], packed)
    x[1] *= 1e6
    assert torch.equal(matmul_reference(x, packed)[:1], alone)
