"""The Triton kernels, interpreted, and run on a GPU where there is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_place import triton_environment

CASES = Path(__file__).parent / "triton_cases.py"


def run_cases(device: str, interpret: bool, cases: Path = CASES) -> int:
    """How many passed. In its own process: Triton settles on import whether it interprets."""
    environment = {**triton_environment(), "TRITON_INTERPRET": str(int(interpret))}
    command = [sys.executable, str(cases), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, said, count = done.stdout.partition("all cases passed: ")
    assert said
    return int(count)


def test_the_interpreted_kernels_give_what_the_reference_gives(record_property) -> None:
    record_property("cases", run_cases("cpu", interpret=True))


def test_another_prompt_compiles_no_other_kernel() -> None:
    assert run_cases("cpu", interpret=False, cases=CASES.with_name("launch_cases.py")) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_compiled_kernels_give_what_the_reference_gives(record_property) -> None:
    record_property("cases", run_cases("cuda", interpret=False))
