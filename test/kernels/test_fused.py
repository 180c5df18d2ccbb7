"""Layers joined for one launch, and the PyTorch steps that the Triton kernels are held against."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import make_layer
from torch import nn

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.gpu_checks import run_checks
from qvla_ros.kernels.fused_linear import fuse
from qvla_ros.kernels.fused_ops import Activation, Branch, FusedLinear, Gather, Norm, Tokens
from qvla_ros.kernels.fused_reference import REFERENCE, activate, add_norm, as_tokens, multiply
from qvla_ros.kernels.quantized_linear import QuantizedLinear

MIXED = (4, 0, 2, 16, 8, 3, 2)
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(bits, seed=0, name="layer", bias=False, columns=130, **form) -> QuantizedLinear:
    packed = make_layer(bits, columns, seed, **form).packed
    layer = QuantizedLinear(packed, torch.randn(len(bits)) if bias else None)
    layer.layer_name = name
    return layer


def answers(layer: FusedLinear, x: torch.Tensor) -> torch.Tensor:
    """The product in canonical order, with the bias."""
    read = x if layer.input_columns is None else x[:, layer.input_columns.long()]
    plain = Activation("identity", layer.gather, layer.gather, rounds=False)
    return activate(multiply(as_tokens(read, layer.rounds_input), layer), plain).values


@pytest.mark.parametrize("bits", [16, 8])
def test_joined_layers_answer_as_they_do_alone(bits) -> None:
    layers = [
        make(row_bits, seed, f"layer {seed}", seed != 1, activation_bits=bits)
        for seed, row_bits in enumerate((MIXED, (0, 0), (16,), (2, 2, 8)))
    ]
    x = torch.randn(5, 130)
    expected = torch.cat([layer(x) for layer in layers], 1)
    joined = fuse(layers)
    assert len(joined.operands) == 1
    close(answers(joined, x), expected)
    close(torch.cat([layer(x) for layer in layers], 1), expected)


def test_joined_layers_take_no_second_place_in_memory() -> None:
    layers = [make((4,) * 9, seed, f"layer {seed}") for seed in range(2)]
    before = [layer.memory_bytes() for layer in layers]
    (operand,) = fuse(layers).operands
    (joined,) = operand.packed.segments
    for layer in layers:
        (own,) = layer.packed.segments
        assert own.codes.untyped_storage().data_ptr() == joined.codes.untyped_storage().data_ptr()
    assert [layer.memory_bytes() for layer in layers] == before


def test_layers_of_different_kinds_stand_beside_each_other_in_one_product() -> None:
    layers = [
        make(MIXED, 0, "floats", bias=True),
        make(MIXED, 1, "integers", activation_bits=8),
        make(MIXED, 2, "groups", groups=True),
        make((4, 4), 3, "more floats"),
    ]
    x = torch.randn(3, 130)
    joined = fuse(layers)
    assert len(joined.operands) == 3
    assert joined.rounds_input
    expected = torch.cat([layer(x) for layer in layers], 1)
    close(answers(joined, x), expected)


def test_layers_that_read_the_same_part_of_the_input_are_joined() -> None:
    layers = [make(MIXED, seed, f"layer {seed}", step=3) for seed in range(2)]
    x = torch.randn(3, 130)
    expected = torch.cat([layer(x) for layer in layers], 1)
    close(answers(fuse(layers), x), expected)


@pytest.mark.parametrize("step", [1, 3])
def test_layers_that_read_different_parts_are_refused(step) -> None:
    with pytest.raises(ConfigurationError, match="'b' and 'a' read different input columns"):
        fuse([make(MIXED, name="a", step=2), make(MIXED, name="b", step=step)])


def test_the_steps_are_those_of_the_modules() -> None:
    residual, y = torch.randn(4, 6), torch.randn(4, 9)
    source = torch.tensor([8, 0, -1, 3, 3, 1], dtype=torch.int32)
    bias, factor = torch.randn(6), torch.randn(6)
    read = y[:, [8, 0, 0, 3, 3, 1]] * torch.tensor([1, 1, 0, 1, 1, 1]) + bias
    gather = Gather(source, bias)
    norm = nn.LayerNorm(6, eps=1e-6)
    total, tokens = add_norm(
        residual, y, Branch(gather, factor), Norm(norm.weight, norm.bias, 1e-6, rounds=False)
    )
    close(total, residual + factor * read)
    close(tokens.values, norm(total))
    rms = add_norm(residual, y, Branch(gather), Norm(norm.weight, None, 1e-6, rounds=False))
    close(rms[1].values, nn.RMSNorm(6, eps=1e-6)(residual + read))
    gelu = activate(y, Activation("gelu", gather, gather, rounds=False))
    close(gelu.values, F.gelu(read))
    other = Gather(source.flip(0), bias)
    product = activate(y, Activation("swiglu", gather, other, rounds=False)).values
    second = activate(y, Activation("identity", other, other, rounds=False)).values
    close(product, F.silu(read) * second)


def test_rounded_tokens_have_their_scale_and_sums() -> None:
    x = torch.randn(3, 300)
    tokens = as_tokens(x, rounds=True)
    assert tokens.rounded is not None and tokens.scale is not None and tokens.sums is not None
    assert tokens.rounded.abs().amax(1).tolist() == [127] * 3
    error = (tokens.rounded * tokens.scale[:, None] - x).abs()
    assert (error <= tokens.scale[:, None] / 2 + 1e-6).all()
    blocks = [part.sum(1) for part in tokens.rounded.int().split(128, 1)]
    assert tokens.sums.int().tolist() == torch.stack([sum(blocks), *blocks], 1).tolist()
    assert as_tokens(x, rounds=False).rounded is None


def test_the_checks_find_a_step_that_is_wrong() -> None:
    def half_written(tokens: Tokens, layer: FusedLinear) -> torch.Tensor:
        y = multiply(tokens, layer)
        wrong = torch.empty_like(y)
        wrong[:, :-1] = y[:, :-1]
        return wrong

    cpu = torch.device("cpu")
    assert all(check.passed for check in run_checks(REFERENCE, cpu, torch.bfloat16))
    ops = type(REFERENCE)("wrong", half_written, activate, add_norm, REFERENCE.rotate)
    wrong = {check.name for check in run_checks(ops, cpu, torch.float32) if not check.passed}
    assert "multiply: mixed widths, 3 tokens" in wrong
    assert not any(name.startswith("gelu") for name in wrong)
