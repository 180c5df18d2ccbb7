"""Tables and plans as safetensors with a JSON description; exact measurements as JSON.

Everything is read strictly: a file is what it says, or it is refused with its name.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qvla_ros.atomic_file import atomic_file
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.strict_json import Fields, JsonObject, parse_object
from qvla_ros.errors import CalibrationError, ConfigurationError, QvlaError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.score_check import RowMeasurement
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS

TABLE, PLAN, EXACT, CHECKPOINT = "sensitivity", "plan", "exact rows", "checkpoint"
"""Kinds of files."""

_KEY = "qvla"
_SCORES, _WEIGHTS = "scores/", "token_weights/"  # before layer names
_ROW_BITS, _COLUMNS = "row_bits/", "input_columns/"
_FINGERPRINTS = ("model_fingerprint", "calibration_fingerprint")
_TABLE_FIELDS = ("kind", "layers", *_FINGERPRINTS, "probes", "seed")
_PLAN_FIELDS = (
    *("kind", "layers", *_FINGERPRINTS),
    *("budget", "predicted_error", "optimality_gap", "activation_bits"),
)
_PARTS: Mapping[str, Literal["vision", "language"]] = {
    "vision": "vision",
    "language": "language",
}
_LIMITS = ("average_bits_per_weight", "max_bytes", "max_latency_ms")


def save_table(table: SensitivityTable, path: Path) -> None:
    """Write a sensitivity table atomically."""
    description = {
        "kind": TABLE,
        "layers": [asdict(layer) for layer in table.layers],
        "model_fingerprint": table.model_fingerprint,
        "calibration_fingerprint": table.calibration_fingerprint,
        "probes": table.probes,
        "seed": table.seed,
    }
    _save(path, {_SCORES: table.scores, _WEIGHTS: table.token_weights}, description)


def load_table(path: Path) -> SensitivityTable:
    """Read what ``save_table`` wrote.

    Raises:
        CalibrationError: The file is missing, corrupt or not a sensitivity table.
    """
    with _reading(path, TABLE, CalibrationError):
        value, tensors = _read(path, TABLE)
        fields = Fields(value, "description", _TABLE_FIELDS)
        layers = _layers(fields)
        _require_known(tensors, layers, (_SCORES, _WEIGHTS))
        shapes = {layer.name: (layer.rows, len(WIDTHS)) for layer in layers}
        return SensitivityTable(
            layers=layers,
            scores=_of_layers(tensors, _SCORES, shapes, torch.float64),
            token_weights=_token_weights(tensors, layers),
            model_fingerprint=fields.text("model_fingerprint"),
            calibration_fingerprint=fields.text("calibration_fingerprint"),
            probes=fields.count("probes"),
            seed=int(fields.number("seed")),
        )


def save_plan(plan: BitPlan, path: Path) -> None:
    """Write a bit plan atomically."""
    description = {
        "kind": PLAN,
        "layers": [asdict(layer) for layer in plan.layers],
        "budget": plan.budget.to_json(),
        "predicted_error": _number(plan.predicted_error),
        "optimality_gap": _number(plan.optimality_gap),
        "activation_bits": plan.activation_bits,
        "model_fingerprint": plan.model_fingerprint,
        "calibration_fingerprint": plan.calibration_fingerprint,
    }
    tensors = {
        _ROW_BITS: plan.row_bits,
        _WEIGHTS: plan.token_weights,
        _COLUMNS: plan.input_columns,
    }
    _save(path, tensors, description)


def load_plan(path: Path) -> BitPlan:
    """Read what ``save_plan`` wrote.

    Raises:
        ConfigurationError: The file is missing, corrupt or not a bit plan.
    """
    with _reading(path, PLAN, ConfigurationError):
        value, tensors = _read(path, PLAN)
        fields = Fields(value, "description", _PLAN_FIELDS)
        layers = _layers(fields)
        _require_known(tensors, layers, (_ROW_BITS, _WEIGHTS, _COLUMNS))
        rows = {layer.name: (layer.rows,) for layer in layers}
        row_bits = _of_layers(tensors, _ROW_BITS, rows, torch.uint8)
        for name, bits in row_bits.items():
            unknown = set(bits.unique().tolist()) - set(WIDTHS)
            _require(not unknown, f"{_ROW_BITS}{name} has the width(s) {sorted(unknown)}")
        return BitPlan(
            layers=layers,
            row_bits=row_bits,
            token_weights=_token_weights(tensors, layers),
            budget=_budget(fields.numbers("budget")),
            predicted_error=_number_or_nan(fields, value, "predicted_error"),
            model_fingerprint=fields.text("model_fingerprint"),
            calibration_fingerprint=fields.text("calibration_fingerprint"),
            input_columns=_input_columns(tensors, layers),
            activation_bits=_activation_bits(fields, layers),
            optimality_gap=_number_or_nan(fields, value, "optimality_gap"),
        )


def save_exact(rows: Sequence[RowMeasurement], path: Path) -> None:
    """Write exact measurements of single rows as JSON, atomically."""
    value = {"kind": EXACT, "rows": [asdict(one) for one in rows]}
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def load_exact(path: Path) -> list[RowMeasurement]:
    """Read what ``save_exact`` wrote.

    Raises:
        CalibrationError: The file is missing, corrupt or of another kind.
    """
    with _reading(path, EXACT, CalibrationError):
        value = parse_object(path.read_bytes(), "the file", CheckpointFault.MANIFEST_JSON)
        _require_kind(value, EXACT)
        fields = Fields(value, "the file", ("kind", "rows"))
        measured = []
        for index, item in enumerate(fields.items("rows")):
            row = Fields(item, f"rows[{index}]", ("layer", "row", "bits", "exact"))
            layer = _layer(row.json_object("layer"), f"rows[{index}].layer")
            bits, number = row.count("bits"), row.count("row")
            _require(bits in WIDTHS and number < layer.rows, f"rows[{index}] is no row or width")
            measured.append(RowMeasurement(layer, number, bits, row.number("exact")))
        return measured


def kind_of(path: Path) -> str | None:
    """``TABLE``, ``PLAN``, ``EXACT`` or ``CHECKPOINT``; ``None``: none of ours.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        if path.suffix == ".json":
            description = json.loads(path.read_bytes())
        else:
            with safe_open(path, framework="pt") as file:
                description = json.loads((file.metadata() or {})[_KEY])
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    except (SafetensorError, KeyError, ValueError):
        return None
    if not isinstance(description, dict):
        return None
    kind = description.get("kind", CHECKPOINT if "schema_version" in description else None)
    return kind if kind in (TABLE, PLAN, EXACT, CHECKPOINT) else None


def _save(
    path: Path, tables: Mapping[str, Mapping[str, Tensor]], description: Mapping[str, object]
) -> None:
    contiguous = {
        prefix + name: tensor.contiguous()
        for prefix, table in tables.items()
        for name, tensor in table.items()
    }
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save(contiguous, metadata={_KEY: text}))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


@contextmanager
def _reading(path: Path, kind: str, error_type: type[QvlaError]) -> Iterator[None]:
    """Whatever is wrong inside is an error of this file."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, QvlaError) as error:
        raise error_type(f"{path} cannot be read as a {kind} file: {error}") from error


def _read(path: Path, kind: str) -> tuple[JsonObject, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise ConfigurationError("it was not written by qvla")
        value = parse_object(text, "its description", CheckpointFault.MANIFEST_JSON)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _require_kind(value, kind)
    return value, tensors


def _require_kind(value: JsonObject, kind: str) -> None:
    found = value.get("kind", CHECKPOINT)
    _require(found == kind, f"it is a {found} file, not a {kind} file")


def _layers(fields: Fields) -> tuple[LinearLayer, ...]:
    return tuple(
        _layer(item, f"layers[{index}]") for index, item in enumerate(fields.items("layers"))
    )


def _layer(value: object, where: str) -> LinearLayer:
    fields = Fields(value, where, ("name", "rows", "columns", "part"))
    part = _PARTS.get(fields.text("part"))
    if part is None:
        raise ConfigurationError(f"{where}.part must be one of {', '.join(_PARTS)}")
    return LinearLayer(fields.text("name"), fields.count("rows"), fields.count("columns"), part)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def _require_known(
    tensors: Mapping[str, Tensor], layers: Sequence[LinearLayer], prefixes: Sequence[str]
) -> None:
    known = {prefix + layer.name for prefix in prefixes for layer in layers}
    unknown = sorted(tensors.keys() - known)
    _require(not unknown, f"unknown tensor {unknown[:1]}")


def _of_layers(
    tensors: Mapping[str, Tensor],
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    found = {}
    for name, shape in shapes.items():
        tensor = tensors.get(prefix + name)
        if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
            raise ConfigurationError(f"{prefix}{name} must be {dtype} {list(shape)}")
        found[name] = tensor
    return found


def _token_weights(
    tensors: Mapping[str, Tensor], layers: Sequence[LinearLayer]
) -> dict[str, Tensor]:
    found = {layer.name: tensors.get(_WEIGHTS + layer.name) for layer in layers}
    for name, tensor in found.items():
        if tensor is None or tensor.ndim != 1 or tensor.dtype != torch.float32:
            raise ConfigurationError(f"{_WEIGHTS}{name} must be float32 [tokens]")
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _input_columns(
    tensors: Mapping[str, Tensor], layers: Sequence[LinearLayer]
) -> dict[str, Tensor]:
    found = {}
    for layer in layers:
        kept = tensors.get(_COLUMNS + layer.name)
        if kept is None:
            continue
        rising = kept.ndim == 1 and len(kept) > 0 and bool((kept.diff() > 0).all())
        inside = rising and int(kept[0]) >= 0 and int(kept[-1]) < layer.columns
        _require(
            kept.dtype == torch.int32 and inside,
            f"{_COLUMNS}{layer.name} must be int32, rising, below {layer.columns}",
        )
        found[layer.name] = kept
    return found


def _activation_bits(fields: Fields, layers: Sequence[LinearLayer]) -> dict[str, int]:
    bits = {name: int(value) for name, value in fields.numbers("activation_bits").items()}
    unknown = bits.keys() - {layer.name for layer in layers}
    _require(not unknown, f"activation_bits names {sorted(unknown)[:1]}, which is no layer")
    _require(set(bits.values()) <= {8, 16}, "activation_bits must be 8 or 16")
    return bits


def _budget(limits: Mapping[str, float]) -> BitBudget:
    unknown = sorted(limits.keys() - set(_LIMITS))
    _require(not unknown, f"budget has the unknown limit {unknown[:1]}")
    bits, size, latency = (limits.get(name) for name in _LIMITS)
    return BitBudget(bits, None if size is None else int(size), latency)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number_or_nan(fields: Fields, value: JsonObject, name: str) -> float:
    return math.nan if value[name] is None else fields.number(name)
