"""Which tensors a packed layer is stored as, under which names."""

from collections.abc import Mapping

import torch

from qvla_ros.checkpoint.bitpack import packed_bytes_per_row
from qvla_ros.checkpoint.manifest import LayerSpec
from qvla_ros.checkpoint.packed_linear import PackedLinear, PackedSegment

FLOAT_PREFIX = "float."
"""Prefix of the network's unpacked parameters: ``float.<parameter name>``."""

PROCESSING_PREFIX = "processing."
"""Prefix of the tensors that the processing needs."""

TOKENIZER_TENSOR = PROCESSING_PREFIX + "tokenizer_json"
"""The bytes of ``tokenizer.json``, ``uint8``."""

OTHER_PREFIXES = (FLOAT_PREFIX, PROCESSING_PREFIX)
"""Every tensor is of a packed layer or has one of these prefixes."""


def expected_tensors(spec: LayerSpec) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name to dtype and shape of every tensor of a layer."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"{spec.name}.row_order": (torch.int32, (spec.stored_rows,))
    }
    for segment in spec.segments:
        prefix = f"{spec.name}.segment{segment.bits}"
        if segment.bits == 16:
            expected[f"{prefix}.weight"] = (torch.bfloat16, (segment.rows, spec.columns))
        else:
            width = packed_bytes_per_row(spec.columns, segment.bits)
            expected[f"{prefix}.codes"] = (torch.uint8, (segment.rows, width))
            expected[f"{prefix}.scale"] = (torch.bfloat16, (segment.rows,))
            expected[f"{prefix}.zero"] = (torch.bfloat16, (segment.rows,))
    return expected


def layer_to_tensors(layer: PackedLinear) -> dict[str, torch.Tensor]:
    """The tensors of a layer by their names in the file."""
    tensors = {f"{layer.name}.row_order": layer.row_order}
    for segment in layer.segments:
        prefix = f"{layer.name}.segment{segment.bits}"
        if segment.bits == 16:
            tensors[f"{prefix}.weight"] = segment.codes
            continue
        if segment.scale is None or segment.zero is None:
            raise ValueError(f"{prefix} has no scale or no zero: validate the layer first")
        tensors[f"{prefix}.codes"] = segment.codes
        tensors[f"{prefix}.scale"] = segment.scale
        tensors[f"{prefix}.zero"] = segment.zero
    return tensors


def layer_from_tensors(spec: LayerSpec, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
    """Undo :func:`layer_to_tensors`; the tensors must all be there (see `expected_tensors`)."""
    segments = []
    for segment in spec.segments:
        prefix = f"{spec.name}.segment{segment.bits}"
        if segment.bits == 16:
            segments.append(PackedSegment(16, tensors[f"{prefix}.weight"]))
        else:
            codes, scale, zero = (tensors[f"{prefix}.{x}"] for x in ("codes", "scale", "zero"))
            segments.append(PackedSegment(segment.bits, codes, scale, zero))
    order = tensors[f"{spec.name}.row_order"]
    return PackedLinear(spec.name, spec.rows, spec.columns, tuple(segments), order)
