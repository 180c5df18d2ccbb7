"""The CPU kernel in C++ (see ``native/linear.cpp``), for x86 processors with AVX-512 BF16.

The weight stays packed; the scratch memory is the calling thread's, whatever the number of layers.
"""

import ctypes

import torch

from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.kernels.native_library import native_library
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.workspace import take

_ALIGNMENT = 64  # bytes; torch aligns what it allocates to as many


class _Segment(ctypes.Structure):
    _fields_ = [
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("stored_rows", ctypes.c_int32),
        ("stored_columns", ctypes.c_int32),
        ("activation_bits", ctypes.c_int32),
        ("segment_count", ctypes.c_int32),
        ("input_columns", ctypes.c_void_p),
        ("gather", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("segments", ctypes.POINTER(_Segment)),
    ]


@torch.no_grad()
def linear_cpu_native(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` for ``bfloat16 x`` (see `operand.Kernel`).

    Raises:
        ValueError: ``x`` is not bfloat16, or the library is not there: `select_kernel` sees to it.
    """
    library = native_library()
    if isinstance(library, str) or x.dtype != torch.bfloat16:
        raise ValueError("the C++ kernel needs its library and bfloat16 inputs")
    y = torch.empty(x.shape[0], operand.packed.rows, dtype=x.dtype)
    if not len(x):
        return y
    x = x.contiguous()
    layer = operand.prepared.get(linear_cpu_native.__name__) or _prepare(operand)
    threads = torch.get_num_threads()
    size = library.qvla_scratch_bytes(layer, len(x), threads)
    scratch = take("native", (size,), torch.uint8)
    library.qvla_linear(layer, x.data_ptr(), y.data_ptr(), len(x), scratch.data_ptr(), threads)
    if operand.bias is not None and operand.bias.dtype != torch.bfloat16:
        y += operand.bias.to(y.dtype)
    return y


def _prepare(operand: LinearOperand) -> ctypes.c_void_p:
    """The layer as C sees it: addresses of tensors that the operand keeps alive."""
    packed, bias = operand.packed, operand.bias
    segments = (_Segment * max(1, len(packed.segments)))(*map(_segment, packed.segments))
    in_place = bias is not None and bias.dtype == torch.bfloat16
    layer = _Layer(
        packed.rows,
        packed.columns,
        packed.stored_rows,
        packed.stored_columns,
        packed.activation_bits,
        len(packed.segments),
        _address(packed.input_columns),
        _address(operand.gather),
        _address(operand.order),
        _address(bias) if in_place else None,
        segments,
    )
    pointer = ctypes.cast(ctypes.pointer(layer), ctypes.c_void_p)
    operand.prepared["native structures"] = layer  # it holds the segments too
    operand.prepared[linear_cpu_native.__name__] = pointer
    return pointer


def _segment(segment: PackedSegment) -> _Segment:
    groups = 1 if segment.scale is None or segment.scale.ndim == 1 else segment.scale.shape[1]
    parts = (segment.codes, segment.scale, segment.zero)
    return _Segment(segment.bits, segment.rows, groups, 0, *map(_address, parts))


def _address(tensor: torch.Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError("a packed tensor is not contiguous")
    return tensor.data_ptr()
