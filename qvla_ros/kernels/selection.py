"""Which kernel multiplies: one small function that also says why."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.cpu import linear_cpu_chunked
from qvla_ros.kernels.cpu_int8 import linear_cpu_int8
from qvla_ros.kernels.cpu_native import linear_cpu_native
from qvla_ros.kernels.cuda_device import triton_obstacle
from qvla_ros.kernels.native_library import native_library
from qvla_ros.kernels.operand import Kernel
from qvla_ros.kernels.reference import linear_reference
from qvla_ros.kernels.triton_linear import linear_triton

AUTO = "auto"
"""Let `select_kernel` choose."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """A kernel and why it was chosen.

    Attributes:
        name: One of :func:`kernel_names`.
        reason: For people, e.g. in `qvla inspect`.
        function: The kernel.
    """

    name: str
    reason: str
    function: Kernel


_KERNELS: dict[str, dict[int, Kernel]] = {  # by activation bits
    "reference": {16: linear_reference, 8: linear_reference},
    "cpu_chunked": {16: linear_cpu_chunked, 8: linear_cpu_int8},
    "cpu_native": {16: linear_cpu_native, 8: linear_cpu_native},
    "triton": {16: linear_triton, 8: linear_triton},
}
_HOW = {
    16: "dequantize a chunk of rows into a reused buffer, then multiply",
    8: "8-bit activations: unpack a chunk of rows into a reused buffer, multiply integers",
}


def kernel_names() -> tuple[str, ...]:
    """The kernels that can be forced."""
    return tuple(_KERNELS)


def select_kernel(
    device: torch.device,
    compute_dtype: torch.dtype,
    forced: str = AUTO,
    activation_bits: int = 16,
) -> KernelChoice:
    """Choose the kernel of a packed Linear.

    Args:
        device: Where the input and the packed weight are.
        compute_dtype: The input's dtype.
        forced: A name of :func:`kernel_names`, or ``"auto"``.
        activation_bits: Of the layer, 16 or 8.

    Raises:
        ConfigurationError: The forced kernel is unknown, not built, or not for this input.
    """
    name, reason = forced, "forced"
    if forced == AUTO:
        name, reason = _choose(device, compute_dtype, activation_bits)
    else:
        require_kernel(forced)
        if forced.startswith("cpu") and device.type != "cpu":
            raise ConfigurationError(f"the kernel {forced!r} cannot run on {device}")
        if forced == "triton" and device.type != "cuda":
            raise ConfigurationError(f"the kernel 'triton' cannot run on {device}")
        if forced == "cpu_native" and compute_dtype != torch.bfloat16:
            raise ConfigurationError(f"the kernel 'cpu_native' cannot compute in {compute_dtype}")
    return KernelChoice(name, reason, _KERNELS[name][activation_bits])


def _choose(
    device: torch.device, compute_dtype: torch.dtype, activation_bits: int
) -> tuple[str, str]:
    how = _HOW[activation_bits]
    if device.type != "cpu":
        obstacle = triton_obstacle()
        if obstacle is None and compute_dtype == torch.float32:
            obstacle = "the Triton kernels multiply bfloat16 or float16"
        if obstacle is None:
            return "triton", "CUDA: one launch for all widths, unpacked in registers"
        return "reference", f"dequantizes whole layers, correct but slow, because {obstacle}"
    if compute_dtype == torch.float16:
        return "cpu_chunked", f"CPU, float16 input: computed in float32; {how}"
    if compute_dtype != torch.bfloat16:
        return "cpu_chunked", f"CPU: {how}"
    library = native_library()
    if isinstance(library, str):
        return "cpu_chunked", f"CPU: {how}; without C++, because {library}"
    return "cpu_native", f"CPU with AVX-512 BF16, in C++: {how}"


def require_kernel(name: str) -> None:
    """Raise ``ConfigurationError`` unless ``name`` is ``"auto"`` or a kernel that runs here.

    The C++ kernel is built now if it may be needed, rather than in the first product.
    """
    if name != AUTO and name not in _KERNELS:
        known = ", ".join((AUTO, *_KERNELS))
        raise ConfigurationError(f"there is no kernel {name!r}; use one of {known}")
    library = native_library() if name in (AUTO, "cpu_native") else None
    if name == "cpu_native" and isinstance(library, str):
        raise ConfigurationError(f"kernel 'cpu_native': {library}; use 'auto'")
    if name == "triton" and find_spec("triton") is None:
        raise ConfigurationError("kernel 'triton': Triton is not installed; use 'auto'")
