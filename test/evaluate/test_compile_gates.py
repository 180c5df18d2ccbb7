"""The Triton kernels as machine code for GPUs that are not here."""

import pytest

from qvla_ros.evaluate.compile_gates import ARCHITECTURES, VARIANTS, compile_gate

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_compiles_to_tensor_core_code_without_spills(architecture, variant) -> None:
    gate = compile_gate(architecture, variant)
    assert gate.spill_instructions == 0
    assert gate.registers <= 255
    assert gate.shared_bytes <= 99 * 1024  # what a program may have on every one of them
    if variant != "round_tokens":
        products = {87: "HMMA", 90: "HGMMA", 110: "UTCHMMA"}
        assert products[architecture] in gate.float_products
    if variant.startswith("a8"):
        products = {87: "IMMA", 90: "IGMMA", 110: "IMMA"}
        assert products[architecture] in gate.integer_products
    if variant != "a8":  # there after the loop, once for each result
        assert gate.integer_to_float_conversions == 0
