"""The exact size of a checkpoint before there is one: shapes decide, not codes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from qvla_ros.checkpoint.container import encode_header, place_tensors
from qvla_ros.checkpoint.layer_spec import LayerSpec, SegmentSpec
from qvla_ros.checkpoint.layout import expected_tensors
from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.tensor_names import FLOAT_PREFIX, GOLDEN_TENSOR, TOKENIZER_TENSOR
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.registry import LoadedModel
from qvla_ros.models.weight_source import stored_value
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.widths import WIDTHS

CREATED_BY = "qvla_ros 0.1.0"

_QUALITY_BYTES = 512  # of the figures that the manifest will carry


class PlannedFile:
    """Sizes of checkpoints of one model by different plans."""

    def __init__(self, model: LoadedModel) -> None:
        """Look at what is stored whatever the plan."""
        self._model = model
        config = model.network.config
        golden = torch.zeros(config.horizon, config.action_dim)
        others = other_tensors(model, {}, golden)
        self._others = {name: tensor.to("meta") for name, tensor in others.items()}

    @property
    def other_bytes(self) -> int:
        """What the tensors beside the packed rows take; the header comes on top."""
        return sum(tensor.nbytes for tensor in self._others.values())

    def bytes_by(self, plan: BitPlan) -> int:
        """Size of the file by a plan, quality figures included: exact to their few bytes."""
        specs = tuple(planned_spec(plan, layer) for layer in plan.layers)
        manifest = manifest_of(self._model, specs, plan.budget, {})
        return file_bytes(manifest, self._others) + _QUALITY_BYTES


def file_bytes(manifest: Manifest, others: Mapping[str, Tensor]) -> int:
    """Size of a checkpoint with the layers of the manifest and all other tensors."""
    tensors = dict(others)
    for spec in manifest.layers:
        for name, (dtype, shape) in expected_tensors(spec).items():
            tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
    entries = place_tensors(tensors)
    return len(encode_header(entries, manifest.to_json())) + entries[-1].end


def manifest_of(
    model: LoadedModel,
    specs: Sequence[LayerSpec],
    budget: BitBudget,
    quality: Mapping[str, float],
) -> Manifest:
    """The manifest of a checkpoint of this model, not yet sealed."""
    return Manifest(
        family=model.network.family,
        model_id=model.model_id,
        source_fingerprint=model.fingerprint,
        model_config=asdict(model.network.config),
        processing=model.processing.settings.to_json(),
        plan=PlanSummary.of(specs, budget.to_json()),
        quality=quality,
        created_by=CREATED_BY,
        layers=tuple(specs),
    )


def other_tensors(
    model: LoadedModel, overrides: Mapping[str, Tensor], golden: Tensor
) -> dict[str, Tensor]:
    """Everything that is not packed.

    Args:
        model: For its parameters (BF16 where that loses nothing) and its tokenizer.
        overrides: Parameters that quantization changed.
        golden: What the quantized network answers to the golden input.
    """
    packed = {f"{layer.name}.weight" for layer in model.network.linear_layers()}
    tensors = {
        FLOAT_PREFIX + name: _smallest(
            overrides[name] if name in overrides else stored_value(model.network, name)
        )
        for name, _ in model.network.named_parameters()
        if name not in packed
    }
    text = model.processing.tokenizer_json.encode()
    tensors[TOKENIZER_TENSOR] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tensors[GOLDEN_TENSOR] = golden
    return tensors


def _smallest(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor.float()


def planned_spec(plan: BitPlan, layer: LinearLayer) -> LayerSpec:
    """The shapes that a layer will have by a plan."""
    row_bits = plan.row_bits[layer.name]
    counts = [(bits, int((row_bits == bits).sum())) for bits in reversed(WIDTHS) if bits]
    return LayerSpec(
        layer.name,
        layer.rows,
        layer.columns,
        plan.stored_columns(layer),
        tuple(SegmentSpec(bits, rows) for bits, rows in counts if rows),
        plan.activation_bits.get(layer.name, 16),
    )
