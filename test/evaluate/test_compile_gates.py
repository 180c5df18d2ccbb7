"""The Triton kernels as machine code for GPUs that are not here."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from triton_place import triton_environment

from qvla_ros.evaluate import compile_gates
from qvla_ros.evaluate.compile_gates import ARCHITECTURES, VARIANTS, CompileGate

COMPILE_ALL = """
import json, sys
from qvla_ros.evaluate.compile_gates import VARIANTS, compile_gate
print(json.dumps({name: compile_gate(int(sys.argv[1]), name).faults() for name in VARIANTS}))
"""
GOOD = CompileGate(87, "a8", "HMMA x4", "IMMA x4", 200, 0, 4096, 8, 0)
CODE = """
.L_x_1:
  IMMA R1, R2 ;
.L_x_0:
  I2FP.F32.S32 R80, R80 ;
  @P0 BRA `(.L_x_0) ;
  BRA `(.L_x_2) ;
  I2F R1, R1 ;
.L_x_2:
  EXIT ;
"""


@pytest.fixture(scope="module")
def faults() -> dict[int, dict[str, list[str]]]:
    """Architecture to kernel to its faults; compiled by processes of their own, side by side."""
    environment = triton_environment(beside_first=True)
    running = {
        architecture: subprocess.Popen(
            [sys.executable, "-c", COMPILE_ALL, str(architecture)],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for architecture in ARCHITECTURES
    }
    return {which: json.loads(process.communicate()[0]) for which, process in running.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_compiles_to_tensor_core_code_without_spills(
    faults, architecture, variant
) -> None:
    assert faults[architecture][variant] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spill_instructions": 2}, "2 instructions spill"),
        ({"shared_bytes": 100 * 1024}, "shared memory"),
        ({"loop_conversions": 1}, "1 conversions to float in loops"),
        ({"float_products": ""}, "no float products"),
        ({"integer_products": "HMMA x4"}, "no integer products"),
    ],
)
def test_every_weakness_of_the_code_is_told(change, said) -> None:
    assert GOOD.faults() == []
    (fault,) = replace(GOOD, **change).faults()
    assert fault.startswith("sm_87 a8: ")
    assert said in fault


def test_only_what_lies_between_a_label_and_a_branch_back_to_it_is_in_a_loop() -> None:
    inside = compile_gates._counts(compile_gates._loops(CODE))
    assert inside["I2FP"] == 1
    assert inside["I2F"] == inside["IMMA"] == 0
