"""Scratch memory of the CPU kernels: one set of buffers a thread, whatever the number of layers."""

import math
import threading

import torch


class _Workspace(threading.local):
    """Named scratch buffers of the calling thread; each grows to the largest size asked for."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}


_workspace = _Workspace()


def take(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor with old contents, valid until this thread takes the name again."""
    size = math.prod(shape) * dtype.itemsize
    buffer = _workspace.buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        # An inference tensor could not be written to outside of inference mode later.
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=torch.uint8)
        _workspace.buffers[name] = buffer
    return buffer[:size].view(dtype).view(shape)


def workspace_bytes() -> int:
    """Bytes of scratch memory that the calling thread holds."""
    return sum(buffer.nbytes for buffer in _workspace.buffers.values())


def spoil_workspace() -> None:
    """Fill the calling thread's buffers with NaN, so that a test sees who reads old contents."""
    for buffer in _workspace.buffers.values():
        buffer.fill_(0xFF)
