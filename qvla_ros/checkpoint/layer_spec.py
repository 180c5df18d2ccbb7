"""What the manifest says of one packed layer: its shape, without its values."""

from collections.abc import Sequence
from dataclasses import dataclass

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.packed_linear import (
    ACTIVATION_BITS,
    STORED_WIDTHS,
    PackedLinear,
)
from qvla_ros.checkpoint.packed_segment import column_groups
from qvla_ros.checkpoint.strict_json import Fields, JsonObject
from qvla_ros.checkpoint.tensor_names import OTHER_PREFIXES
from qvla_ros.errors import CheckpointError

INTEGER_CODEBOOK = "int"
"""Codes are unsigned integers: ``w = (q - zero) * scale``."""

BFLOAT16_CODEBOOK = "bf16"
"""No codes: the weights themselves."""


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """The rows of one width in a layer.

    Attributes:
        bits: 16, 8, 4, 3 or 2.
        rows: How many, at least 1.
        group_columns: Columns that share a scale and a zero: 128, or ``None`` for whole rows.
    """

    bits: int
    rows: int
    group_columns: int | None = None

    @property
    def codebook(self) -> str:
        """What a code means; other codebooks (e.g. 4-bit floats) may follow."""
        return BFLOAT16_CODEBOOK if self.bits == 16 else INTEGER_CODEBOOK

    def grid_shape(self, columns: int) -> tuple[int, ...]:
        """Shape of the scale and of the zero for ``columns`` stored columns."""
        if self.group_columns is None:
            return (self.rows,)
        return (self.rows, column_groups(columns))

    def to_object(self) -> JsonObject:
        """The JSON object."""
        return {
            "bits": self.bits,
            "rows": self.rows,
            "codebook": self.codebook,
            "group_columns": self.group_columns,
        }

    @classmethod
    def from_object(cls, value: object, where: str) -> "SegmentSpec":
        """Read :meth:`to_object` strictly."""
        fields = Fields(value, where, ("bits", "codebook", "group_columns", "rows"))
        group_columns = fields.count_or_null("group_columns")
        spec = cls(fields.count("bits"), fields.count("rows"), group_columns)
        if spec.bits not in STORED_WIDTHS:
            raise _layer_error(f"{where}.bits is {spec.bits}: must be one of {STORED_WIDTHS}")
        if spec.rows < 1:
            raise _layer_error(f"{where}.rows is {spec.rows}: a segment has at least one row")
        if fields.text("codebook") != spec.codebook:
            raise _layer_error(
                f"{where}.codebook is {fields.text('codebook')!r}: "
                f"{spec.bits} bits are read as {spec.codebook!r} only"
            )
        allowed = (None,) if spec.bits == 16 else (None, BLOCK_COLUMNS)
        if group_columns not in allowed:
            raise _layer_error(
                f"{where}.group_columns is {group_columns}: {spec.bits} bits may have {allowed}"
            )
        return spec


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The shape of one packed layer.

    Attributes:
        name: Module path of the Linear in the network.
        rows: Output channels, 0-bit rows included.
        columns: Input channels, removed ones included.
        stored_columns: Input channels that the stored weight multiplies.
        segments: Widest first.
        activation_bits: 16 or 8.
    """

    name: str
    rows: int
    columns: int
    stored_columns: int
    segments: tuple[SegmentSpec, ...]
    activation_bits: int = 16

    @property
    def stored_rows(self) -> int:
        """Rows that take bytes."""
        return sum(segment.rows for segment in self.segments)

    @classmethod
    def of(cls, layer: PackedLinear) -> "LayerSpec":
        """The spec of a layer."""
        segments = tuple(
            SegmentSpec(segment.bits, segment.rows, segment.group_columns)
            for segment in layer.segments
        )
        return cls(
            layer.name,
            layer.rows,
            layer.columns,
            layer.stored_columns,
            segments,
            layer.activation_bits,
        )

    def to_object(self) -> JsonObject:
        """The JSON object."""
        return {
            "name": self.name,
            "rows": self.rows,
            "columns": self.columns,
            "stored_columns": self.stored_columns,
            "activation_bits": self.activation_bits,
            "segments": [segment.to_object() for segment in self.segments],
        }

    @classmethod
    def from_object(cls, value: object, where: str) -> "LayerSpec":
        """Read :meth:`to_object` strictly."""
        fields = Fields(
            value,
            where,
            ("activation_bits", "columns", "name", "rows", "segments", "stored_columns"),
        )
        segments = tuple(
            SegmentSpec.from_object(item, f"{where}.segments[{index}]")
            for index, item in enumerate(fields.items("segments"))
        )
        spec = cls(
            fields.text("name"),
            fields.count("rows"),
            fields.count("columns"),
            fields.count("stored_columns"),
            segments,
            fields.count("activation_bits"),
        )
        _require_name(spec, where)
        _require_sizes(spec, f"{where} ({spec.name!r})")
        _require_segments(segments, f"{where} ({spec.name!r})")
        return spec


def _require_name(spec: LayerSpec, where: str) -> None:
    if not spec.name or spec.name.startswith(OTHER_PREFIXES):
        raise _layer_error(
            f"{where}.name is {spec.name!r}: a layer has a name, which begins with none of "
            f"{OTHER_PREFIXES}"
        )


def _require_sizes(spec: LayerSpec, where: str) -> None:
    if spec.rows < 1 or spec.columns < 1:
        raise _layer_error(f"{where} needs at least one row and at least one column")
    if not 1 <= spec.stored_columns <= spec.columns:
        raise _layer_error(f"{where} stores {spec.stored_columns} columns of {spec.columns}")
    if spec.stored_rows > spec.rows:
        raise _layer_error(f"{where} stores {spec.stored_rows} rows of only {spec.rows}")
    if spec.activation_bits not in ACTIVATION_BITS:
        raise _layer_error(
            f"{where} has activations of {spec.activation_bits} bits: they must have one of "
            f"{ACTIVATION_BITS}"
        )


def _require_segments(segments: Sequence[SegmentSpec], where: str) -> None:
    widths = [segment.bits for segment in segments]
    if widths != sorted(set(widths), reverse=True):
        raise _layer_error(
            f"{where} has segments of {widths} bits: they must be sorted, widest first, once each"
        )
    if len({segment.group_columns for segment in segments if segment.bits != 16}) > 1:
        raise _layer_error(f"{where} has scales of whole rows and of groups: it must be one kind")


def _layer_error(message: str) -> CheckpointError:
    return CheckpointError(message, fault=CheckpointFault.LAYER_SPEC)
