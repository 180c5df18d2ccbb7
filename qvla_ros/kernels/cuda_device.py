"""Whether packed networks can run on CUDA here, and by which kernels."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from qvla_ros.errors import ConfigurationError

DEVICES = ("auto", "cpu", "cuda")
"""What can be asked for."""

FORBIDDING_VARIABLE = "QVLA_TRITON"
"""Environment variable: ``0`` forbids the Triton kernels."""

_LEAST_CAPABILITY = (8, 0)  # bfloat16 and int8 on tensor cores


def resolve_device(name: str) -> torch.device:
    """The device for one of ``DEVICES``; ``"auto"`` is CUDA where the Triton kernels run.

    Raises:
        ConfigurationError: There is no such device here.
    """
    if name not in DEVICES:
        raise ConfigurationError(f"device {name!r}: use one of {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device 'cuda': {_no_cuda()}; use 'cpu' or 'auto'")
    if name == "auto":
        name = "cpu" if triton_obstacle() else "cuda"
    return torch.device(name)


@cache
def triton_obstacle() -> str | None:
    """Why the Triton kernels cannot run here; ``None`` if they can."""
    if not torch.cuda.is_available():
        return _no_cuda()
    if os.environ.get(FORBIDDING_VARIABLE) == "0":
        return f"{FORBIDDING_VARIABLE}=0 forbids Triton"
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'triton>=3.7.1')"
    found = torch.cuda.get_device_capability()
    if found < _LEAST_CAPABILITY:
        return f"compute capability {found[0]}.{found[1]} is below 8.0"
    return None


def device_errors() -> tuple[type[Exception], ...]:
    """What a device that lacks memory, a kernel or a compiler raises; Triton's are not Python's."""
    if triton_obstacle() is not None:
        return (RuntimeError,)
    return RuntimeError, import_module("triton.errors").TritonError


def _no_cuda() -> str:
    build = "this PyTorch is built without CUDA" if torch.version.cuda is None else ""
    return build or "PyTorch finds no CUDA device"
