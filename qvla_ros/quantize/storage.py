"""Sensitivity tables and bit plans as files: safetensors with a JSON description."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import CalibrationError, ConfigurationError, QvlaError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.sensitivity import SensitivityTable

_KEY = "qvla"
_SCORES, _ROW_BITS, _ENERGY = "scores/", "row_bits/", "input_energy/"  # before layer names


def save_table(table: SensitivityTable, path: Path) -> None:
    """Write a sensitivity table atomically."""
    description = {
        "kind": "sensitivity",
        "layers": [asdict(layer) for layer in table.layers],
        "model_fingerprint": table.model_fingerprint,
        "calibration_fingerprint": table.calibration_fingerprint,
        "probes": table.probes,
        "seed": table.seed,
    }
    _save(path, {_SCORES: table.scores, _ENERGY: table.input_energy}, description)


def load_table(path: Path) -> SensitivityTable:
    """Read what ``save_table`` wrote.

    Raises:
        CalibrationError: The file is missing, corrupt or not a sensitivity table.
    """
    description, tensors = _load(path, "sensitivity", CalibrationError)
    return SensitivityTable(
        layers=tuple(LinearLayer(**layer) for layer in description["layers"]),
        scores=_under(tensors, _SCORES),
        input_energy=_under(tensors, _ENERGY),
        model_fingerprint=description["model_fingerprint"],
        calibration_fingerprint=description["calibration_fingerprint"],
        probes=description["probes"],
        seed=description["seed"],
    )


def save_plan(plan: BitPlan, path: Path) -> None:
    """Write a bit plan atomically."""
    description = {
        "kind": "plan",
        "layers": [asdict(layer) for layer in plan.layers],
        "budget": plan.budget.to_json(),
        "predicted_error": plan.predicted_error,
        "model_fingerprint": plan.model_fingerprint,
    }
    _save(path, {_ROW_BITS: plan.row_bits, _ENERGY: plan.input_energy}, description)


def load_plan(path: Path) -> BitPlan:
    """Read what ``save_plan`` wrote.

    Raises:
        ConfigurationError: The file is missing, corrupt or not a bit plan.
    """
    description, tensors = _load(path, "plan", ConfigurationError)
    budget = description["budget"]
    size = budget.get("max_bytes")
    return BitPlan(
        layers=tuple(LinearLayer(**layer) for layer in description["layers"]),
        row_bits=_under(tensors, _ROW_BITS),
        input_energy=_under(tensors, _ENERGY),
        budget=BitBudget(
            budget.get("average_bits_per_weight"), None if size is None else int(size)
        ),
        predicted_error=description["predicted_error"],
        model_fingerprint=description["model_fingerprint"],
    )


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _save(path: Path, tables: dict[str, dict[str, torch.Tensor]], description: dict) -> None:
    contiguous = {
        prefix + name: tensor.contiguous()
        for prefix, table in tables.items()
        for name, tensor in table.items()
    }
    text = json.dumps(description, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(save(contiguous, metadata={_KEY: text}))


def _load(
    path: Path, kind: str, error_type: type[QvlaError]
) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise error_type(f"{path} cannot be read as a {kind} file: {error}") from error
    if description.get("kind") != kind:
        raise error_type(f"{path} is a {description.get('kind')} file, not a {kind} file")
    return description, tensors
