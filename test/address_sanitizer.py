"""A pytest plugin: the C++ kernel is built with AddressSanitizer, and its scratch ends exactly.

The process must have been started with the sanitizer's library preloaded.
"""

import torch

from qvla_ros.kernels import cpu_native, native_library


def exactly(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Scratch memory of no other product, so that each byte behind its end is out of bounds."""
    return torch.empty(shape, dtype=dtype)


native_library._OPTIONS = [*native_library._OPTIONS, "-g", "-fsanitize=address"]
cpu_native.take = exactly
