"""The offline path: frames -> scores -> plan -> codes -> one packed checkpoint, five calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.tensor_names import FLOAT_PREFIX, GOLDEN_TENSOR, TOKENIZER_TENSOR
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.errors import BudgetError, ConfigurationError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.models.registry import FAMILY, LoadedModel
from qvla_ros.observation import Observation
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.calibration import CalibrationSet, calibration_set
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.layer_evidence import LayerEvidence
from qvla_ros.quantize.quantized_model import QuantizedModel, fake_quantized
from qvla_ros.quantize.reconstruction import reconstruct
from qvla_ros.quantize.sensitivity import MeasureSettings, SensitivityTable, measure_sensitivity
from qvla_ros.quantize.structure import feeds
from qvla_ros.quantize.widths import WIDTHS

CREATED_BY = "qvla_ros 0.1.0"

FRAMES = 64
"""Calibration frames, if nobody says otherwise."""

OnProgress = Callable[[int, int], None]
OnLayer = Callable[[LayerEvidence], None]

_HEADER_BYTES_A_TENSOR = (
    320  # generous: name, shape and offsets, once as entry, once in a manifest
)
_HEADER_BYTES = 65_536


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
    return calibration_set(observations, model.processing, frames)


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
    return allocate_bits(table, budget, fixed_bytes(model), settings)


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


def fixed_bytes(model: LoadedModel) -> int:
    """Upper bound of what a checkpoint takes beside the packed rows: float tensors and header."""
    layers = model.network.linear_layers()
    floats = float_tensors(model, {})
    text = len(model.processing.tokenizer_json.encode())
    tensors = len(floats) + 12 * len(layers)
    return (
        sum(tensor.nbytes for tensor in floats.values())
        + text
        + _HEADER_BYTES
        + _HEADER_BYTES_A_TENSOR * tensors
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
    layers = {name: layer.pack() for name, layer in quantized.layers.items()}
    size = fixed_bytes(model) + sum(layer.nbytes for layer in layers.values())
    if budget.max_bytes is not None and size > budget.max_bytes:
        raise BudgetError(
            f"the checkpoint would take {size} bytes, the budget is {budget.max_bytes}"
        )
    manifest = Manifest(
        family=FAMILY,
        model_id=model.model_id,
        source_fingerprint=model.fingerprint,
        model_config=asdict(model.network.config),
        processing=model.processing.settings.to_json(),
        plan=PlanSummary(
            quantized.average_bits_per_weight, _histogram(quantized), budget.to_json()
        ),
        quality=quality or {},
        created_by=CREATED_BY,
    )
    written = write_checkpoint(path, manifest, layers, _tensors(model, quantized))
    return WrittenCheckpoint(path, written, path.stat().st_size)


def _histogram(quantized: QuantizedModel) -> dict[int, int]:
    rows = torch.cat([layer.row_bits for layer in quantized.layers.values()])
    return {bits: int((rows == bits).sum()) for bits in WIDTHS}


def float_tensors(model: LoadedModel, overrides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every parameter that is not packed, as BF16 wherever that loses nothing."""
    packed = {f"{layer.name}.weight" for layer in model.network.linear_layers()}
    return {
        name: _smallest(overrides.get(name, parameter.detach()))
        for name, parameter in model.network.named_parameters()
        if name not in packed
    }


def _smallest(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _tensors(model: LoadedModel, quantized: QuantizedModel) -> dict[str, Tensor]:
    tensors = {
        FLOAT_PREFIX + name: tensor
        for name, tensor in float_tensors(model, quantized.overrides).items()
    }
    text = model.processing.tokenizer_json.encode()
    tensors[TOKENIZER_TENSOR] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tensors[GOLDEN_TENSOR] = _golden_actions(model, quantized)
    return tensors


@torch.no_grad()
def _golden_actions(model: LoadedModel, quantized: QuantizedModel) -> Tensor:
    robot = model.processing.settings.robot
    question = golden_observation(robot.image_names, robot.state_dim)
    twin = fake_quantized(model.network, quantized)
    answer = twin(model.processing.prepare(question))[0]
    return torch.from_numpy(model.processing.robot_actions(answer.numpy()))
