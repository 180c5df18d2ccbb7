"""Which tensors a packed layer is stored as, under which names."""

from collections.abc import Mapping

import torch

from qvla_ros.checkpoint.bitpack import packed_bytes_per_row
from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment


def expected_tensors(spec: LayerSpec) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name to dtype and shape of every tensor of a layer."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"{spec.name}.row_order": (torch.int32, (spec.stored_rows,))
    }
    columns = spec.stored_columns
    if columns < spec.columns:
        expected[f"{spec.name}.input_columns"] = (torch.int32, (columns,))
    for segment in spec.segments:
        prefix = f"{spec.name}.segment{segment.bits}"
        if segment.bits == 16:
            expected[f"{prefix}.weight"] = (torch.bfloat16, (segment.rows, columns))
        else:
            width = packed_bytes_per_row(columns, segment.bits)
            expected[f"{prefix}.codes"] = (torch.uint8, (segment.rows, width))
            for part in ("scale", "zero"):
                expected[f"{prefix}.{part}"] = (torch.bfloat16, segment.grid_shape(columns))
    return expected


def layer_to_tensors(layer: PackedLinear) -> dict[str, torch.Tensor]:
    """The tensors of a layer by their names in the file."""
    tensors = {f"{layer.name}.row_order": layer.row_order}
    if layer.input_columns is not None:
        tensors[f"{layer.name}.input_columns"] = layer.input_columns
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
    columns = tensors.get(f"{spec.name}.input_columns")
    return PackedLinear(
        spec.name, spec.rows, spec.columns, tuple(segments), order, spec.activation_bits, columns
    )
