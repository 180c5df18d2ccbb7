"""Every kernel against the reference, and the reference against fake quantization."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FORMS, KERNELS, MIXES, WIDTHS, kernel_here
from torch.nn import functional as F

from qvla_ros.kernels import cpu
from qvla_ros.kernels.cpu import linear_cpu_chunked
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.reference import dequantize, linear_reference, matmul_reference
from qvla_ros.kernels.workspace import spoil_workspace, workspace_bytes

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Error of a product, relative to the product of the magnitudes."""


def identity_product(kernel, packed, dtype):
    """The weight that the kernel multiplies by: exact, since every sum has one term."""
    return kernel(torch.eye(packed.columns, dtype=dtype), LinearOperand.prepare(packed)).t()


@settings(deadline=None)
@given(
    row_bits=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=12).map(tuple),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    groups=st.booleans(),
    step=st.integers(1, 3),
)
def test_packed_dequantization_is_fake_quantization_bit_for_bit(
    make_example, row_bits, columns, seed, groups, step
) -> None:
    example = make_example(row_bits, columns, seed, groups, step)
    for dtype in (torch.float32, torch.bfloat16):
        expected = example.fake_quantized.to(dtype)
        assert torch.equal(dequantize(example.packed, dtype), expected)
        assert torch.equal(identity_product(linear_cpu_chunked, example.packed, dtype), expected)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize(("batch", "bias"), [(1, True), (4, False), (17, True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("name", "dtype"), KERNELS)
def test_a_kernel_gives_what_the_reference_gives(
    name, mix, form, bias, batch, dtype, make_example
) -> None:
    columns, groups, step = FORMS[form]
    packed = make_example(MIXES[mix], columns, 1, groups, step).packed
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, packed.columns, generator=generator).to(dtype)
    vector = torch.randn(packed.rows, generator=generator).to(dtype) if bias else None
    kernel = kernel_here(name, dtype)
    y = kernel(x, LinearOperand.prepare(packed, vector))
    assert y.dtype == dtype
    expected = matmul_reference(x, packed)
    magnitude = x.float().abs() @ dequantize(packed).abs().t()
    if vector is not None:
        expected += vector.float()
        magnitude += vector.float().abs()
    assert bool(((y.float() - expected).abs() <= ROUNDING[dtype] * magnitude).all())


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("name", "dtype"), KERNELS)
def test_a_kernel_multiplies_by_the_very_weight_of_the_reference(
    name, mix, form, dtype, make_example
) -> None:
    columns, groups, step = FORMS[form]
    packed = make_example(MIXES[mix], columns, 3, groups, step).packed
    actual = identity_product(kernel_here(name, dtype), packed, dtype)
    assert torch.equal(actual, dequantize(packed, dtype))


@pytest.mark.usefixtures("chunking")
def test_old_contents_of_the_workspace_do_not_leak_into_a_product(make_example) -> None:
    packed = make_example(MIXES["mixed"], 130, 4).packed
    linear_cpu_chunked(torch.ones(2, 130), LinearOperand.prepare(packed))
    spoil_workspace()
    assert torch.equal(
        identity_product(linear_cpu_chunked, packed, torch.float32), dequantize(packed)
    )


def test_a_layer_larger_than_one_chunk_is_multiplied_in_chunks(make_example, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "CHUNK_WEIGHTS", 1)
    rows = []
    monkeypatch.setattr(cpu, "linear", lambda x, w, b: rows.append(len(w)) or F.linear(x, w, b))
    packed = make_example((4,) * 300 + (0, 2, 16) * 100, 4, 5).packed
    linear_cpu_chunked(torch.ones(1, 4), LinearOperand.prepare(packed))
    assert rows == [256, 244]


def test_the_workspace_does_not_grow_with_the_number_of_layers(make_example) -> None:
    operands = [
        LinearOperand.prepare(make_example(MIXES["mixed"], 300, seed).packed) for seed in range(4)
    ]
    linear_cpu_chunked(torch.ones(1, 300), operands[0])
    before = workspace_bytes()
    for operand in operands:
        linear_cpu_chunked(torch.ones(1, 300), operand)
    assert workspace_bytes() == before


def test_threads_do_not_share_a_workspace(make_example) -> None:
    packed = [make_example((4, 2, 8, 0, 16) * 20, 200, seed).packed for seed in range(2)]
    expected = [dequantize(layer) for layer in packed]
    wrong = []

    def work(index: int) -> None:
        for _ in range(30):
            actual = identity_product(linear_cpu_chunked, packed[index], torch.float32)
            if not torch.equal(actual, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_workspace_of_inference_mode_serves_outside_of_it_too(make_example) -> None:
    operand = LinearOperand.prepare(make_example(MIXES["mixed"], 4321, 6).packed)
    x = torch.ones(1, 4321)
    with torch.inference_mode():
        inside = linear_cpu_chunked(x, operand)
    assert torch.equal(linear_cpu_chunked(x, operand), inside)


def test_a_bias_of_a_wrong_length_is_refused(make_example) -> None:
    packed = make_example((4, 2), 8, 0).packed
    with pytest.raises(ValueError, match=r"bias must have the shape \[2\]"):
        LinearOperand.prepare(packed, torch.zeros(3))


def test_the_reference_is_a_kernel_too(make_example) -> None:
    packed = make_example(MIXES["mixed"], 20, 7).packed
    actual = identity_product(linear_reference, packed, torch.float32)
    assert torch.equal(actual, dequantize(packed))
