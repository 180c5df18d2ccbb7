"""Which kernel multiplies: one small function that also says why."""

from dataclasses import dataclass

import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.cpu import linear_cpu_chunked
from qvla_ros.kernels.operand import Kernel
from qvla_ros.kernels.reference import linear_reference

AUTO = "auto"
"""Let `select_kernel` choose."""

NOT_BUILT = {
    "triton": "the fused Triton kernels for CUDA devices are not built yet",
}
"""Kernels that have a place here but no code, with the reason."""

SMALL_BATCH_ROWS = 16
"""Below this, reading the weights takes longer than multiplying by them."""


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


_KERNELS: dict[str, Kernel] = {
    "reference": linear_reference,
    "cpu_chunked": linear_cpu_chunked,
}
_FORCED = {name: KernelChoice(name, "forced", kernel) for name, kernel in _KERNELS.items()}
_CPU = KernelChoice(
    "cpu_chunked",
    "CPU: dequantize a chunk of rows into a reused buffer, then multiply",
    linear_cpu_chunked,
)
_CPU_SMALL_BATCH = KernelChoice(
    "cpu_chunked",
    f"CPU, fewer than {SMALL_BATCH_ROWS} rows of input: no kernel for small batches is built, "
    f"so dequantizing dominates",
    linear_cpu_chunked,
)
_CPU_FLOAT16 = KernelChoice(
    "cpu_chunked",
    "CPU, float16 input: computed in float32, because CPUs are slow in float16",
    linear_cpu_chunked,
)
_ELSEWHERE = KernelChoice(
    "reference",
    f"not a CPU, and {NOT_BUILT['triton']}: correct but slow, and it dequantizes whole layers",
    linear_reference,
)


def kernel_names() -> tuple[str, ...]:
    """The kernels that can be forced."""
    return tuple(_KERNELS)


def select_kernel(
    device: torch.device, compute_dtype: torch.dtype, batch_rows: int, forced: str = AUTO
) -> KernelChoice:
    """Choose the kernel of a packed Linear.

    Args:
        device: Where the input and the packed weight are.
        compute_dtype: The input's dtype.
        batch_rows: Rows of the input, all leading dimensions together.
        forced: A name of :func:`kernel_names`, or ``"auto"``.

    Raises:
        ConfigurationError: The forced kernel is unknown, not built, or not for this device.
    """
    if forced != AUTO:
        require_kernel(forced)
        if forced == "cpu_chunked" and device.type != "cpu":
            raise ConfigurationError(f"the kernel 'cpu_chunked' cannot run on {device}")
        return _FORCED[forced]
    if device.type != "cpu":
        return _ELSEWHERE
    if compute_dtype == torch.float16:
        return _CPU_FLOAT16
    return _CPU_SMALL_BATCH if batch_rows < SMALL_BATCH_ROWS else _CPU


def require_kernel(name: str) -> None:
    """Raise ``ConfigurationError`` unless ``name`` is ``"auto"`` or of :func:`kernel_names`."""
    if name == AUTO or name in _KERNELS:
        return
    known = ", ".join((AUTO, *_KERNELS))
    if name in NOT_BUILT:
        raise ConfigurationError(f"kernel {name!r}: {NOT_BUILT[name]}; use one of {known}")
    raise ConfigurationError(f"there is no kernel {name!r}; use one of {known}")
