"""Which kernel is chosen, and whether it says why."""

import pytest
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.selection import kernel_names, select_kernel

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "dtype", "batch_rows", "name", "reason"),
    [
        (CPU, torch.bfloat16, 207, "cpu_chunked", "dequantize a chunk"),
        (CPU, torch.bfloat16, 1, "cpu_chunked", "fewer than 16 rows"),
        (CPU, torch.float16, 207, "cpu_chunked", "computed in float32"),
        (CUDA, torch.bfloat16, 207, "reference", "Triton kernels for CUDA devices are not built"),
    ],
)
def test_the_choice_depends_on_device_dtype_and_batch(
    device, dtype, batch_rows, name, reason
) -> None:
    choice = select_kernel(device, dtype, batch_rows)
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize("name", kernel_names())
def test_a_forced_kernel_is_taken(name: str) -> None:
    choice = select_kernel(CPU, torch.bfloat16, 207, name)
    assert (choice.name, choice.reason) == (name, "forced")


def test_a_kernel_that_is_not_built_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"'triton'.*not built yet; use one of auto"):
        select_kernel(CUDA, torch.bfloat16, 207, "triton")


def test_the_cpu_kernel_is_refused_on_another_device() -> None:
    with pytest.raises(ConfigurationError, match="cannot run on cuda:0"):
        select_kernel(CUDA, torch.bfloat16, 207, "cpu_chunked")


def test_an_unknown_kernel_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="auto, reference, cpu_chunked"):
        select_kernel(CPU, torch.bfloat16, 207, "magic")
