"""Packed layers that read the same input, joined into one that is multiplied by one launch."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from qvla_ros.checkpoint.packed_linear import STORED_WIDTHS, PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.fused_ops import FusedLinear, Gather, sources
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear


def fuse(layers: Sequence[QuantizedLinear]) -> FusedLinear:
    """Join layers that read the same input.

    Joined codes take no second place in memory: the layers hold views of them afterwards.

    Raises:
        ConfigurationError: The layers do not read the same columns.
    """
    first = layers[0]
    for layer in layers[1:]:
        if not _same(layer.input_columns, first.input_columns):
            raise ConfigurationError(
                f"{layer.layer_name!r} and {first.layer_name!r} read different input columns"
            )
    kinds: dict[tuple[int, int | None], list[QuantizedLinear]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer.packed), []).append(layer)
    found: dict[str, torch.Tensor] = {}
    operands = []
    stored = 0
    for members in kinds.values():
        packed = members[0].packed if len(members) == 1 else _join(members)
        operands.append(LinearOperand.prepare(packed))
        rows = sources(packed, stored).split([layer.rows for layer in members])
        found |= zip([layer.layer_name for layer in members], rows, strict=True)
        stored += packed.stored_rows
    source = torch.cat([found[layer.layer_name] for layer in layers])
    return FusedLinear(
        operands=tuple(operands),
        stored_rows=stored,
        gather=Gather(source, _biases(layers)),
        input_columns=first.input_columns,
        rounds_input=any(layer.activation_bits == 8 for layer in layers),
    )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _kind(packed: PackedLinear) -> tuple[int, int | None]:
    """What layers of one launch share: activation bits, and the columns of a scale."""
    groups = {segment.group_columns for segment in packed.segments if segment.bits != 16}
    return packed.activation_bits, next(iter(groups), None)


def _join(layers: Sequence[QuantizedLinear]) -> PackedLinear:
    """The rows of all layers, sorted by width; the layers hold parts of its tensors afterwards."""
    parts = [layer.packed for layer in layers]
    offsets = [sum(part.rows for part in parts[:index]) for index in range(len(parts))]
    segments = []
    order = []
    mine: list[list[PackedSegment]] = [[] for _ in parts]
    for bits in STORED_WIDTHS:
        members = [
            (index, start, segment)
            for index, part in enumerate(parts)
            for start, segment in _with_starts(part)
            if segment.bits == bits
        ]
        if not members:
            continue
        joined = _joined_segment(bits, [segment for _, _, segment in members])
        segments.append(joined)
        first = 0
        for index, start, segment in members:
            rows = slice(first, first + segment.rows)
            first += segment.rows
            mine[index].append(_rows_of(joined, rows))
            order.append(parts[index].row_order[start : start + segment.rows] + offsets[index])
    for layer, part, own in zip(layers, parts, mine, strict=True):
        layer.hold(replace(part, segments=tuple(own)))
    return PackedLinear(
        name=" + ".join(part.name for part in parts),
        rows=sum(part.rows for part in parts),
        columns=parts[0].columns,
        segments=tuple(segments),
        row_order=torch.cat(order) if order else parts[0].row_order,
        activation_bits=parts[0].activation_bits,
        input_columns=parts[0].input_columns,
    )


def _with_starts(packed: PackedLinear) -> list[tuple[int, PackedSegment]]:
    starts = []
    start = 0
    for segment in packed.segments:
        starts.append((start, segment))
        start += segment.rows
    return starts


def _joined_segment(bits: int, segments: Sequence[PackedSegment]) -> PackedSegment:
    scales = [segment.scale for segment in segments if segment.scale is not None]
    zeros = [segment.zero for segment in segments if segment.zero is not None]
    return PackedSegment(
        bits,
        torch.cat([segment.codes for segment in segments]),
        torch.cat(scales) if scales else None,
        torch.cat(zeros) if zeros else None,
    )


def _rows_of(segment: PackedSegment, rows: slice) -> PackedSegment:
    if segment.scale is None or segment.zero is None:
        return PackedSegment(segment.bits, segment.codes[rows])
    return PackedSegment(
        segment.bits, segment.codes[rows], segment.scale[rows], segment.zero[rows]
    )


def _biases(layers: Sequence[QuantizedLinear]) -> torch.Tensor | None:
    given = [layer.bias for layer in layers if layer.bias is not None]
    if not given:
        return None
    return torch.cat(
        [given[0].new_zeros(layer.rows) if layer.bias is None else layer.bias for layer in layers]
    )
