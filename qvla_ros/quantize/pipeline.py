"""The offline path: observations, calibration set, sensitivity table, bit plan, checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from qvla_ros.checkpoint.layout import FLOAT_PREFIX, TOKENIZER_TENSOR
from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.errors import BudgetError, ConfigurationError
from qvla_ros.models.registry import FAMILY, LoadedModel
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.packing import float_tensors, linear_weight, pack_layer
from qvla_ros.quantize.rounding import Rounding, round_clipped, round_nearest

CREATED_BY = "qvla_ros 0.1.0"
ROUNDINGS: dict[str, Rounding] = {"clip": round_clipped, "nearest": round_nearest}
"""Roundings by the name that the command line knows them by."""

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


def fixed_bytes(model: LoadedModel) -> int:
    """Upper bound of what a checkpoint takes beside the packed rows: float tensors and header."""
    layers = tuple(model.network.linear_layers())
    floats = float_tensors(model.network, layers)
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
    plan: BitPlan,
    path: Path,
    rounding: Rounding = round_clipped,
    quality: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> WrittenCheckpoint:
    """Quantize every layer by the plan and write one packed checkpoint, atomically.

    Raises:
        ConfigurationError: The plan was made for another model.
        BudgetError: The file is larger than the plan's budget of bytes.
        CheckpointError: The file cannot be written.
    """
    if plan.model_fingerprint != model.fingerprint:
        raise ConfigurationError(
            f"the plan was made for another model than {model.model_id}: measure and plan again"
        )
    layers: dict[str, PackedLinear] = {}
    for done, layer in enumerate(plan.layers, start=1):
        weight = linear_weight(model.network, layer)
        layers[layer.name] = pack_layer(
            layer, weight, plan.row_bits[layer.name], rounding, plan.input_energy[layer.name]
        )
        if on_progress is not None:
            on_progress(done, len(plan.layers))
    size = fixed_bytes(model) + sum(layer.nbytes for layer in layers.values())
    limit = plan.budget.max_bytes
    if limit is not None and size > limit:
        raise BudgetError(f"the checkpoint would take {size} bytes, the budget is {limit}")
    manifest = write_checkpoint(
        path, _manifest(model, plan, quality or {}), layers, _tensors(model)
    )
    return WrittenCheckpoint(path, manifest, path.stat().st_size)


def _manifest(model: LoadedModel, plan: BitPlan, quality: Mapping[str, float]) -> Manifest:
    return Manifest(
        family=FAMILY,
        model_id=model.model_id,
        source_fingerprint=model.fingerprint,
        model_config=asdict(model.network.config),
        processing=model.processing.settings.to_json(),
        plan=PlanSummary(plan.average_bits_per_weight, plan.bit_histogram, plan.budget.to_json()),
        quality=quality,
        created_by=CREATED_BY,
    )


def _tensors(model: LoadedModel) -> dict[str, torch.Tensor]:
    layers = tuple(model.network.linear_layers())
    tensors = {
        FLOAT_PREFIX + name: tensor
        for name, tensor in float_tensors(model.network, layers).items()
    }
    text = model.processing.tokenizer_json.encode()
    tensors[TOKENIZER_TENSOR] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors
