"""The offline path: frames -> scores -> plan -> codes -> one packed checkpoint, five calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.manifest import Manifest
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.errors import BudgetError, ConfigurationError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.models.registry import LoadedModel
from qvla_ros.observation import Observation
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.calibration import CalibrationSet, calibration_set
from qvla_ros.quantize.file_size import (
    PlannedFile,
    file_bytes,
    manifest_of,
    other_tensors,
)
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.layer_evidence import LayerEvidence
from qvla_ros.quantize.quantized_model import QuantizedModel, fake_quantized
from qvla_ros.quantize.reconstruction import reconstruct
from qvla_ros.quantize.sensitivity import MeasureSettings, SensitivityTable, measure_sensitivity
from qvla_ros.quantize.structure import feeds

FRAMES = 64
"""Calibration frames, if nobody says otherwise."""

OnProgress = Callable[[int, int], None]
OnLayer = Callable[[LayerEvidence], None]

_ATTEMPTS = 6  # at filling a budget of bytes to the last row
_WASTE = 1e-4  # share of such a budget that may be left


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """What came out.

    Attributes:
        path: The file.
        manifest: As written.
        file_bytes: Its size.
    """

    path: Path
    manifest: Manifest
    file_bytes: int


def calibrate(
    model: LoadedModel, observations: Sequence[Observation], frames: int = FRAMES
) -> CalibrationSet:
    """Choose frames, evenly over all observations, and process them as the robot does.

    Raises:
        CalibrationError: There are fewer observations than frames.
    """
    return calibration_set(observations, model.processing, frames).taught_by(model.network)


def measure_model(
    model: LoadedModel,
    calibration: CalibrationSet,
    metric: ActionMetric | None = None,
    settings: MeasureSettings | None = None,
    on_progress: OnProgress | None = None,
    journal: Journal | None = None,
    on_layer: OnLayer | None = None,
) -> SensitivityTable:
    """Score every row at every width; all steps and dimensions count alike without a metric.

    Raises:
        CalibrationError: The frames leave a layer without evidence.
    """
    robot = model.processing.settings.robot
    return measure_sensitivity(
        model.network,
        calibration,
        metric or ActionMetric.uniform(robot.horizon, robot.action_dim),
        settings,
        model.fingerprint,
        on_progress,
        on_layer,
        journal,
    )


def plan_bits(
    model: LoadedModel,
    table: SensitivityTable,
    budget: BitBudget,
    settings: AllocationSettings | None = None,
) -> BitPlan:
    """Choose the width of every row, and remove the columns behind pruned rows.

    Raises:
        BudgetError: The budget cannot be met.
        ConfigurationError: The table is of another model.
    """
    _require_same_model(model, table.model_fingerprint, "sensitivity table")
    settings = replace(settings or AllocationSettings(), feeds=tuple(feeds(model.network)))
    if budget.max_bytes is None:
        return allocate_bits(table, budget, settings=settings)
    file = PlannedFile(model)
    best: BitPlan | None = None
    taken = file.other_bytes  # beside the rows; a plan tells how long the header is
    for attempt in range(_ATTEMPTS):
        try:
            plan = allocate_bits(table, budget, taken, settings)
        except BudgetError:
            if best is not None:
                break
            raise
        left = budget.max_bytes - file.bytes_by(plan)
        if left >= 0 and (best is None or plan.predicted_error < best.predicted_error):
            best = plan
        if 0 <= left <= _WASTE * budget.max_bytes:
            break
        taken -= left - attempt * 64
    if best is None:
        raise BudgetError(f"no plan makes a file of at most {budget.max_bytes} bytes")
    return best


def quantize_model(
    model: LoadedModel,
    plan: BitPlan,
    calibration: CalibrationSet,
    on_progress: OnProgress | None = None,
    journal: Journal | None = None,
) -> QuantizedModel:
    """Choose the codes by a plan.

    Raises:
        ConfigurationError: The plan is for another model, or was measured on other frames.
    """
    _require_same_model(model, plan.model_fingerprint, "bit plan")
    return reconstruct(model.network, plan, calibration, on_progress, journal)


def _require_same_model(model: LoadedModel, fingerprint: str, what: str) -> None:
    if fingerprint != model.fingerprint:
        raise ConfigurationError(
            f"the {what} is of another model ({fingerprint[:12] or 'unknown'}) than "
            f"{model.model_id} ({model.fingerprint[:12]}): measure this one"
        )


def write_quantized(
    model: LoadedModel,
    quantized: QuantizedModel,
    budget: BitBudget,
    path: Path,
    quality: Mapping[str, float] | None = None,
) -> WrittenCheckpoint:
    """Pack every layer and write one checkpoint, atomically.

    Args:
        model: The float model, for what is not quantized.
        quantized: Of that model.
        budget: That was asked for; recorded, and held if it is one of bytes.
        path: The file.
        quality: Measured figures that the manifest carries.

    Raises:
        BudgetError: The file is larger than the budget of bytes.
        CheckpointError: The file cannot be written.
    """
    layers = {name: layer.packed for name, layer in quantized.layers.items()}
    others = other_tensors(model, quantized.overrides, _golden_actions(model, quantized))
    specs = [LayerSpec.of(layer) for layer in layers.values()]
    manifest = manifest_of(model, specs, budget, quality or {})
    _require_budget(manifest, others, budget)
    written = write_checkpoint(path, manifest, layers, others)
    return WrittenCheckpoint(path, written, path.stat().st_size)


def write_weighed(
    candidate: Path, quality: Mapping[str, float], budget: BitBudget, path: Path
) -> WrittenCheckpoint:
    """Write a checkpoint again, with the quality that it was found to have.

    Raises:
        BudgetError: The file is larger than the budget of bytes.
        CheckpointError: The candidate is corrupt, or the file cannot be written.
    """
    checkpoint = read_checkpoint(candidate)
    manifest = replace(checkpoint.manifest, quality=dict(quality))
    _require_budget(manifest, checkpoint.tensors, budget)
    written = write_checkpoint(path, manifest, checkpoint.layers, checkpoint.tensors)
    return WrittenCheckpoint(path, written, path.stat().st_size)


def _require_budget(manifest: Manifest, others: Mapping[str, Tensor], budget: BitBudget) -> None:
    size = file_bytes(manifest, others)
    if budget.max_bytes is not None and size > budget.max_bytes:
        raise BudgetError(
            f"the checkpoint would take {size} bytes, the budget is {budget.max_bytes}"
        )


@torch.no_grad()
def _golden_actions(model: LoadedModel, quantized: QuantizedModel) -> Tensor:
    """What the self-test of the robot is to find, float32 ``[horizon, action_dim]``."""
    robot = model.processing.settings.robot
    question = model.processing.prepare(golden_observation(robot.image_names, robot.state_dim))
    answer = fake_quantized(model.network, quantized)(question)[0]
    return torch.from_numpy(model.processing.robot_actions(answer.numpy()))
