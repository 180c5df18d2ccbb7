"""Run by test_triton.py in a process of its own: every mix and form, against the reference.

Usage: ``python triton_cases.py cpu|cuda``; on the CPU with ``TRITON_INTERPRET=1``.
"""

import sys

import torch
from kernel_cases import FORMS, MIXES, make_layer

from qvla_ros.evaluate.gpu_checks import LIMIT, run_checks
from qvla_ros.evaluate.gpu_networks import network_error
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import linear_reference
from qvla_ros.kernels.triton_fused import TRITON
from qvla_ros.kernels.triton_linear import linear_triton

# Interpreted bfloat16 products are wrong, silently: a GPU has to show those.
DTYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.bfloat16, torch.float16)}
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-6}


def check(device: str, dtype: torch.dtype, mix: str, form: str, bits: int, batch: int) -> None:
    columns, groups, step = FORMS[form]
    packed = make_layer(MIXES[mix], columns, 1, groups, step, bits).packed
    x = torch.randn(batch, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = torch.arange(packed.rows).to(dtype)
    expected = linear_reference(x.float(), LinearOperand.prepare(packed, bias.float()))
    layer = QuantizedLinear(packed, bias).to(device)
    actual = linear_triton(x.to(device), layer.operand).cpu()
    assert actual.dtype == dtype
    error = (actual.float() - expected).abs().max()
    largest = expected.abs().max()
    assert error <= ROUNDING[dtype] * largest, (mix, form, bits, batch, dtype, error, largest)


def check_what_is_not_finite(device: str) -> None:
    layer = QuantizedLinear(make_layer((8, 2, 4), 130, activation_bits=8).packed).to(device)
    x = torch.zeros(3, 130, device=device)
    x[1, 7], x[2, 7] = float("inf"), float("nan")
    y = linear_triton(x, layer.operand)
    assert not y[0].any()
    assert not torch.isfinite(y[1:]).any()


def check_bfloat16_is_refused_in_the_interpreter() -> None:
    layer = QuantizedLinear(make_layer((4,), 130).packed)
    try:
        linear_triton(torch.zeros(3, 130, dtype=torch.bfloat16), layer.operand)
    except ValueError:
        return
    raise AssertionError("bfloat16 was multiplied")


def check_steps(device: str, dtype: torch.dtype) -> int:
    """All steps of a fused network, into memory that holds NaN; how many."""
    checks = run_checks(TRITON, torch.device(device), dtype)
    wrong = [check for check in checks if not check.passed]
    assert not wrong, wrong
    return len(checks)


if __name__ == "__main__":
    where = sys.argv[1]
    count = sum(check_steps(where, dtype_) for dtype_ in DTYPES[where])
    for dtype_ in DTYPES[where][:1]:
        for bits_ in (16, 8):
            for mix_ in MIXES:
                check(where, dtype_, mix_, "groups and removed columns", bits_, 3)
            for form_ in FORMS:
                check(where, dtype_, "mixed", form_, bits_, 70)
            count += len(MIXES) + len(FORMS)
    check_what_is_not_finite(where)
    if where == "cpu":
        check_bfloat16_is_refused_in_the_interpreter()
    assert network_error(torch.device(where), TRITON, bits=8) < LIMIT
    print(f"all cases passed: {count + 1}")
