"""Which kernel is chosen, and whether it says why."""

import pytest
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels import selection
from qvla_ros.kernels.selection import kernel_names, require_kernel, select_kernel

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
BF16 = torch.bfloat16


@pytest.fixture(params=["with C++", "without C++"])
def native(request, monkeypatch) -> bool:
    """Whether the C++ library is there, whatever this machine has."""
    there = request.param == "with C++"
    library = object() if there else "there is no C++ compiler"
    monkeypatch.setattr(selection, "native_library", lambda: library)
    return there


@pytest.mark.parametrize(
    ("device", "dtype", "bits", "name", "reason"),
    [
        (CPU, torch.float32, 16, "cpu_chunked", "CPU: dequantize a chunk"),
        (CPU, torch.float32, 8, "cpu_chunked", "multiply integers"),
        (CPU, torch.float16, 16, "cpu_chunked", "computed in float32"),
    ],
)
@pytest.mark.usefixtures("native")
def test_the_choice_depends_on_device_dtype_and_activations(
    device, dtype, bits, name, reason
) -> None:
    choice = select_kernel(device, dtype, activation_bits=bits)
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("obstacle", "name", "reason"),
    [(None, "triton", "one launch"), ("it is Sunday", "reference", "slow, because it is Sunday")],
)
def test_cuda_is_multiplied_by_triton_unless_something_is_in_the_way(
    obstacle, name, reason, monkeypatch
) -> None:
    monkeypatch.setattr(selection, "triton_obstacle", lambda: obstacle)
    choice = select_kernel(CUDA, BF16)
    assert choice.name == name
    assert reason in choice.reason
    assert select_kernel(CUDA, torch.float32).name == "reference"


@pytest.mark.parametrize("bits", [16, 8])
def test_bfloat16_on_a_cpu_is_multiplied_in_cpp_where_that_can_be(native, bits) -> None:
    choice = select_kernel(CPU, BF16, activation_bits=bits)
    assert choice.name == ("cpu_native" if native else "cpu_chunked")
    reason = "in C++" if native else "without C++, because there is no C++ compiler"
    assert reason in choice.reason


def test_the_two_kinds_of_activations_have_different_kernels(monkeypatch) -> None:
    monkeypatch.setattr(selection, "native_library", lambda: "none")
    whole, rounded = (select_kernel(CPU, BF16, activation_bits=bits) for bits in (16, 8))
    assert whole.function is not rounded.function


@pytest.mark.parametrize("name", [name for name in kernel_names() if name != "triton"])
def test_a_forced_kernel_is_taken(name: str, monkeypatch) -> None:
    monkeypatch.setattr(selection, "native_library", lambda: object())
    choice = select_kernel(CPU, BF16, name)
    assert (choice.name, choice.reason) == (name, "forced")


def test_triton_is_refused_where_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(selection, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="Triton is not installed; use 'auto'"):
        select_kernel(CUDA, BF16, "triton")


def test_triton_is_refused_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(selection, "find_spec", lambda _: object())
    assert select_kernel(CUDA, BF16, "triton").reason == "forced"
    with pytest.raises(ConfigurationError, match="'triton' cannot run on cpu"):
        select_kernel(CPU, BF16, "triton")


@pytest.mark.parametrize("name", ["cpu_chunked", "cpu_native"])
def test_a_cpu_kernel_is_refused_on_another_device(name, monkeypatch) -> None:
    monkeypatch.setattr(selection, "native_library", lambda: object())
    with pytest.raises(ConfigurationError, match="cannot run on cuda:0"):
        select_kernel(CUDA, BF16, name)


def test_the_cpp_kernel_computes_in_bfloat16_only(monkeypatch) -> None:
    monkeypatch.setattr(selection, "native_library", lambda: object())
    with pytest.raises(ConfigurationError, match=r"cannot compute in torch.float32"):
        select_kernel(CPU, torch.float32, "cpu_native")


def test_a_missing_cpp_library_is_refused_with_its_reason(monkeypatch) -> None:
    monkeypatch.setattr(selection, "native_library", lambda: "the processor lacks avx512f")
    with pytest.raises(ConfigurationError, match="'cpu_native': the processor lacks avx512f"):
        require_kernel("cpu_native")


def test_an_unknown_kernel_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="auto, reference, cpu_chunked"):
        select_kernel(CPU, BF16, "magic")
