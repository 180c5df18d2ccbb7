"""The Triton kernels, interpreted, and run on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

CASES = Path(__file__).parent / "triton_cases.py"


def run_cases(device: str, interpret: bool) -> None:
    """In its own process: whether Triton interprets is settled when its kernels are imported."""
    folders = (str(CASES.parents[2]), str(CASES.parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "TRITON_INTERPRET": str(int(interpret)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(CASES), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all cases passed" in done.stdout


def test_the_interpreted_kernels_give_what_the_reference_gives() -> None:
    run_cases("cpu", interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_compiled_kernels_give_what_the_reference_gives() -> None:
    run_cases("cuda", interpret=False)
