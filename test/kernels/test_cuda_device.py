"""Which device is taken, and why the Triton kernels may not run."""

import pytest
import torch

from qvla_ros.cli.kernel_facts import kernel_facts
from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels import cuda_device
from qvla_ros.kernels.cuda_device import resolve_device, triton_obstacle


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU of a compute capability and with Triton; nothing forbidden."""

    def make(capability: tuple[int, int] | None, triton: bool = True, forbidden: str = "") -> None:
        triton_obstacle.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(cuda_device, "find_spec", lambda _: object() if triton else None)
        monkeypatch.setenv(cuda_device.FORBIDDING_VARIABLE, forbidden)

    yield make
    triton_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("capability", "triton", "forbidden", "reason"),
    [
        ((8, 7), True, "", None),
        ((9, 0), True, "1", None),
        ((9, 0), True, "0", "QVLA_TRITON=0 forbids"),
        ((9, 0), False, "", "not installed"),
        ((7, 5), True, "", "7.5 is below 8.0"),
        (None, True, "", "CUDA"),
    ],
)
def test_triton_runs_on_new_gpus_where_it_is_installed_and_not_forbidden(
    machine, capability, triton, forbidden, reason
) -> None:
    machine(capability, triton, forbidden)
    obstacle = triton_obstacle()
    assert obstacle is None if reason is None else reason in str(obstacle)
    assert resolve_device("auto").type == ("cuda" if reason is None else "cpu")


def test_cuda_is_refused_where_there_is_none(machine) -> None:
    machine(None)
    with pytest.raises(ConfigurationError, match="use 'cpu' or 'auto'"):
        resolve_device("cuda")
    assert resolve_device("cpu").type == "cpu"


def test_cuda_without_triton_is_taken_if_it_is_asked_for(machine) -> None:
    machine((9, 0), triton=False)
    assert resolve_device("cuda").type == "cuda"


def test_an_unknown_device_is_refused_with_the_known_ones(machine) -> None:
    machine((9, 0))
    with pytest.raises(ConfigurationError, match="auto, cpu, cuda"):
        resolve_device("tpu")


def test_the_kernel_that_is_told_is_the_one_that_the_node_would_take(machine, monkeypatch) -> None:
    """It once told float32 and the oracle for GPUs whose processor has no bf16, as Orin's."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    machine((8, 7))
    told = kernel_facts(None)
    assert told["on"] == "cuda, bfloat16"
    assert str(told["16-bit activations"]).startswith("triton: ")
    machine((8, 7), forbidden="0")
    assert kernel_facts(None)["on"] == "cpu, float32"
