"""How long a row takes at each width: measured on the target, read from a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvla_ros.atomic_file import atomic_file
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.strict_json import Fields, parse_object
from qvla_ros.errors import CheckpointError, ConfigurationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.widths import WIDTHS

_KIND = "qvla latency table"
_ACTIVATION_BITS = (8, 16)


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """What a layer costs: ``fixed_ms`` and, for every row, ``row_ms`` of its width.

    Attributes:
        layer: Name of the layer, or ``None``: any layer of these sizes.
        rows: Output channels that were measured.
        columns: Input channels.
        activation_bits: 16 or 8.
        fixed_ms: Milliseconds an inference, whatever the widths.
        row_ms: Width to milliseconds of one row; a row of 0 bits takes no time.
    """

    layer: str | None
    rows: int
    columns: int
    activation_bits: int
    fixed_ms: float
    row_ms: Mapping[int, float]

    def __post_init__(self) -> None:
        where = self.layer or f"a layer of {self.rows} x {self.columns}"
        if self.rows < 1 or self.columns < 1:
            raise ConfigurationError(f"latency of {where}: rows and columns must be positive")
        if self.activation_bits not in _ACTIVATION_BITS:
            raise ConfigurationError(
                f"latency of {where}: {self.activation_bits} activation bits, not 8 or 16"
            )
        unknown = sorted(set(self.row_ms) - set(WIDTHS[1:]))
        if unknown or not self.row_ms:
            raise ConfigurationError(
                f"latency of {where}: widths {unknown}, they must be of {WIDTHS[1:]}"
            )
        if self.fixed_ms < 0 or min(self.row_ms.values()) < 0:
            raise ConfigurationError(f"latency of {where}: a time is negative")

    def of_width(self, bits: int) -> float:
        """Milliseconds of one row.

        Raises:
            ConfigurationError: The width was not measured.
        """
        if bits == 0:
            return 0.0
        if bits not in self.row_ms:
            raise ConfigurationError(
                f"the latency table has no {bits}-bit rows of "
                f"{self.layer or f'{self.rows} x {self.columns}'}: measure them, or forbid "
                f"{bits} bits"
            )
        return self.row_ms[bits]


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Measured times of the layers of one model on one machine.

    Attributes:
        device: What it was measured on.
        other_ms: Milliseconds an inference outside the planned layers.
        layers: At most one entry for each layer (or shape) and number of activation bits.
    """

    device: str
    other_ms: float
    layers: tuple[LayerLatency, ...]

    def __post_init__(self) -> None:
        if self.other_ms < 0:
            raise ConfigurationError("the latency table's other_ms is negative")
        seen = set()
        for one in self.layers:
            key = (one.layer or (one.rows, one.columns), one.activation_bits)
            if key in seen:
                raise ConfigurationError(f"the latency table has {key[0]} twice")
            seen.add(key)

    def of(self, layer: LinearLayer, activation_bits: int = 16) -> LayerLatency:
        """The entry of a layer: by its name, else by its sizes.

        Raises:
            ConfigurationError: There is none, or the named one has other sizes.
        """
        fitting = [one for one in self.layers if one.activation_bits == activation_bits]
        size = (layer.rows, layer.columns)
        for one in fitting:
            if one.layer == layer.name and (one.rows, one.columns) != size:
                raise ConfigurationError(
                    f"the latency table measured {layer.name!r} at {one.rows} x {one.columns}, "
                    f"it is {layer.rows} x {layer.columns}: measure this model"
                )
        named = [one for one in fitting if one.layer == layer.name]
        shaped = [one for one in fitting if one.layer is None and (one.rows, one.columns) == size]
        if not named + shaped:
            raise ConfigurationError(
                f"the latency table of {self.device!r} has no entry for {layer.name!r} "
                f"({layer.rows} x {layer.columns}) at {activation_bits} activation bits: "
                "measure this model"
            )
        return (named + shaped)[0]


def save_latency_table(table: LatencyTable, path: Path) -> None:
    """Write the table as JSON, atomically."""
    entries = [
        {
            "layer": one.layer,
            "rows": one.rows,
            "columns": one.columns,
            "activation_bits": one.activation_bits,
            "fixed_ms": one.fixed_ms,
            "row_ms": {str(bits): ms for bits, ms in sorted(one.row_ms.items())},
        }
        for one in table.layers
    ]
    value = {
        "kind": _KIND,
        "device": table.device,
        "other_ms": table.other_ms,
        "layers": entries,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def load_latency_table(path: Path) -> LatencyTable:
    """Read what ``save_latency_table`` wrote.

    Raises:
        ConfigurationError: The file is missing, or not a latency table in every field.
    """
    try:
        value = parse_object(path.read_bytes(), "the file", CheckpointFault.MANIFEST_FIELD)
        fields = Fields(value, "table", ("kind", "device", "other_ms", "layers"))
        if fields.text("kind") != _KIND:
            raise ConfigurationError(f"its kind is {fields.text('kind')!r}, not {_KIND!r}")
        entries = enumerate(fields.items("layers"))
        return LatencyTable(
            fields.text("device"),
            fields.number("other_ms"),
            tuple(_read_layer(entry, f"layers[{index}]") for index, entry in entries),
        )
    except (OSError, CheckpointError, ConfigurationError) as error:
        raise ConfigurationError(f"{path} cannot be read as a latency table: {error}") from error


def _read_layer(value: object, where: str) -> LayerLatency:
    names = ("layer", "rows", "columns", "activation_bits", "fixed_ms", "row_ms")
    fields = Fields(value, where, names)
    named = isinstance(value, dict) and value["layer"] is not None
    times = fields.numbers("row_ms")
    unknown = sorted(set(times) - set(map(str, WIDTHS[1:])))
    if unknown:
        raise ConfigurationError(f"{where}.row_ms has the width {unknown[0]!r}")
    return LayerLatency(
        layer=fields.text("layer") if named else None,
        rows=fields.count("rows"),
        columns=fields.count("columns"),
        activation_bits=fields.count("activation_bits"),
        fixed_ms=fields.number("fixed_ms"),
        row_ms={int(bits): ms for bits, ms in times.items()},
    )
