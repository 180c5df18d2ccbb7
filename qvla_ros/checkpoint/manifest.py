"""What a packed checkpoint says about itself: one JSON object in the file's header."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.packed_linear import BIT_WIDTHS
from qvla_ros.checkpoint.strict_json import Fields, JsonObject, canonical_json, parse_object
from qvla_ros.errors import CheckpointError

SCHEMA_VERSION = 2
"""Version of the format that this code writes and reads."""

UNSEALED = "0" * 64
"""The checksum of a manifest that has not been written yet."""

_HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """The bit plan in three figures.

    Attributes:
        average_bits_per_weight: Mean width over all weights of all packed layers, those in removed
            columns included (they have 0 bits); codes only.
        bit_histogram: Rows of each width of 0, 2, 3, 4, 8, 16; an absent one has none.
        budget: What the plan had to meet, e.g. ``{"average_bits_per_weight": 4.0}``.
    """

    average_bits_per_weight: float
    bit_histogram: Mapping[int, int]
    budget: Mapping[str, float]

    @classmethod
    def of(cls, layers: Sequence[LayerSpec], budget: Mapping[str, float]) -> "PlanSummary":
        """Count the widths of ``layers``."""
        histogram = dict.fromkeys(sorted(BIT_WIDTHS), 0)
        bits = weights = 0
        for layer in layers:
            weights += layer.rows * layer.columns
            histogram[0] += layer.rows - layer.stored_rows
            for segment in layer.segments:
                histogram[segment.bits] += segment.rows
                bits += segment.bits * segment.rows * layer.stored_columns
        return cls(bits / weights if weights else 0.0, histogram, dict(budget))

    def to_object(self) -> JsonObject:
        """The JSON object."""
        return {
            "average_bits_per_weight": float(self.average_bits_per_weight),
            "bit_histogram": {
                str(bits): self.bit_histogram.get(bits, 0) for bits in sorted(BIT_WIDTHS)
            },
            "budget": {name: float(value) for name, value in self.budget.items()},
        }

    @classmethod
    def from_object(cls, value: object, layers: Sequence[LayerSpec]) -> "PlanSummary":
        """Read :meth:`to_object` strictly, and check it against ``layers``."""
        where = "manifest.plan"
        fields = Fields(value, where, ("average_bits_per_weight", "bit_histogram", "budget"))
        widths = tuple(str(bits) for bits in sorted(BIT_WIDTHS))
        histogram = Fields(fields.json_object("bit_histogram"), f"{where}.bit_histogram", widths)
        plan = cls(
            fields.number("average_bits_per_weight"),
            {int(width): histogram.count(width) for width in widths},
            fields.numbers("budget"),
        )
        plan.require_fit(layers)
        return plan

    def require_fit(self, layers: Sequence[LayerSpec]) -> None:
        """Raise ``CheckpointError`` (``PLAN_MISMATCH``) unless the figures are those of layers."""
        true = PlanSummary.of(layers, self.budget)
        if self.bit_histogram != true.bit_histogram or not math.isclose(
            self.average_bits_per_weight, true.average_bits_per_weight, abs_tol=1e-6
        ):
            raise CheckpointError(
                f"manifest.plan says {self.average_bits_per_weight:.6f} bits and "
                f"{dict(self.bit_histogram)}, but the layers have "
                f"{true.average_bits_per_weight:.6f} and {dict(true.bit_histogram)}",
                fault=CheckpointFault.PLAN_MISMATCH,
            )


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a checkpoint that is not a tensor.

    It holds no time stamp: the same input gives the same bytes.

    Attributes:
        family: Model family that the registry knows, e.g. ``"openvla_oft"``.
        model_id: Name of the model for people.
        source_fingerprint: SHA-256 of the model folder that was quantized, 64 hexadecimal digits.
        model_config: What rebuilds the network; typed by ``models``.
        processing: What rebuilds the processing; typed by ``models``.
        plan: The bit plan in short.
        quality: Named results, e.g. ``{"heldout_action_error": 0.01}``.
        created_by: Program and version that wrote the file.
        layers: In the order of the network; filled by the writer.
        sha256: Checksum of the whole file (see ``docs/checkpoint-format.md``), which also serves
            as the checkpoint's identity; filled by the writer.
    """

    family: str
    model_id: str
    source_fingerprint: str
    model_config: JsonObject
    processing: JsonObject
    plan: PlanSummary
    quality: Mapping[str, float]
    created_by: str
    layers: tuple[LayerSpec, ...] = ()
    sha256: str = UNSEALED
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The canonical JSON text."""
        return canonical_json(
            {
                "schema_version": self.schema_version,
                "family": self.family,
                "model_id": self.model_id,
                "source_fingerprint": self.source_fingerprint,
                "model_config": self.model_config,
                "processing": self.processing,
                "layers": [layer.to_object() for layer in self.layers],
                "plan": self.plan.to_object(),
                "quality": {name: float(value) for name, value in self.quality.items()},
                "created_by": self.created_by,
                "integrity": {"sha256": self.sha256},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read :meth:`to_json` strictly.

        Raises:
            CheckpointError: Not JSON, of another version, or a field is missing, unknown or wrong.
        """
        value = parse_object(text, "the manifest", CheckpointFault.MANIFEST_JSON)
        _require_known_version(value)
        fields = Fields(value, "manifest", _FIELD_NAMES)
        layers = tuple(
            LayerSpec.from_object(item, f"manifest.layers[{index}]")
            for index, item in enumerate(fields.items("layers"))
        )
        _require_unique_names(layers)
        integrity = Fields(fields.json_object("integrity"), "manifest.integrity", ("sha256",))
        return cls(
            family=fields.text("family"),
            model_id=fields.text("model_id"),
            source_fingerprint=_digest(fields.text("source_fingerprint"), "source_fingerprint"),
            model_config=fields.json_object("model_config"),
            processing=fields.json_object("processing"),
            plan=PlanSummary.from_object(fields.json_object("plan"), layers),
            quality=fields.numbers("quality"),
            created_by=fields.text("created_by"),
            layers=layers,
            sha256=_digest(integrity.text("sha256"), "integrity.sha256"),
            schema_version=fields.count("schema_version"),
        )


_FIELD_NAMES = (
    "schema_version",
    "family",
    "model_id",
    "source_fingerprint",
    "model_config",
    "processing",
    "layers",
    "plan",
    "quality",
    "created_by",
    "integrity",
)


def _require_known_version(value: Mapping[str, object]) -> None:
    """Before all other fields: another version has other ones."""
    version = value.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(
            "manifest lacks the integer field 'schema_version'",
            fault=CheckpointFault.MANIFEST_FIELD,
        )
    if version != SCHEMA_VERSION:
        mend = "update qvla_ros" if version > SCHEMA_VERSION else "quantize the model again"
        raise CheckpointError(
            f"the checkpoint has schema version {version}, and this program reads "
            f"{SCHEMA_VERSION}: {mend}",
            fault=CheckpointFault.SCHEMA_VERSION,
        )


def _require_unique_names(layers: Sequence[LayerSpec]) -> None:
    seen: set[str] = set()
    for layer in layers:
        if layer.name in seen:
            raise CheckpointError(
                f"manifest.layers names {layer.name!r} twice", fault=CheckpointFault.LAYER_SPEC
            )
        seen.add(layer.name)


def _digest(text: str, name: str) -> str:
    if len(text) != 64 or not set(text) <= _HEXADECIMAL:
        raise CheckpointError(
            f"manifest.{name} must be 64 lower-case hexadecimal digits",
            fault=CheckpointFault.MANIFEST_FIELD,
        )
    return text
