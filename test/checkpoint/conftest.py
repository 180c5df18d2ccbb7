"""A small checkpoint with every width in it, made by formula."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.writer import write_checkpoint

MIXED_BITS = (4, 0, 2, 16, 8, 4, 3, 16, 0, 8)

LayerMaker = Callable[..., PackedLinear]
ManifestMaker = Callable[[dict[str, PackedLinear]], Manifest]


@pytest.fixture(scope="session")
def make_layer() -> LayerMaker:
    """``make_layer(name, bits of each row, columns)``: codes, scales and zeros by formula."""

    def make(
        name: str,
        row_bits: tuple[int, ...],
        columns: int,
        groups: int | None = None,
        activation_bits: int = 16,
        input_columns: torch.Tensor | None = None,
    ) -> PackedLinear:
        bits = torch.tensor(row_bits, dtype=torch.int32)
        row = torch.arange(len(row_bits))
        kept = columns if input_columns is None else len(input_columns)
        raw = 7 * row[:, None] + 3 * torch.arange(kept)
        codes = torch.remainder(raw, 2 ** bits.clamp(max=8)[:, None]).to(torch.uint8)
        cell = row if groups is None else row[:, None] + torch.arange(groups)
        return PackedLinear.assemble(
            name,
            columns,
            bits,
            codes,
            (2.0 ** -(cell % 4 + 1)).bfloat16(),
            (cell % 3 + 0.5).bfloat16(),
            ((raw % 31 - 15) / 8).bfloat16(),
            activation_bits=activation_bits,
            input_columns=input_columns,
        )

    return make


@pytest.fixture(scope="session")
def make_manifest() -> ManifestMaker:
    """``make_manifest(layers)``: a manifest that fits them."""

    def make(layers: dict[str, PackedLinear]) -> Manifest:
        specs = [LayerSpec.of(layer) for layer in layers.values()]
        return Manifest(
            family="openvla_oft",
            model_id="tiny",
            source_fingerprint="ab" * 32,
            model_config={"hidden": 130, "towers": ["dino", "siglip"], "eps": 1e-06},
            processing={"image_size": 224, "text": "größer ≥ 1", "none": None},
            plan=PlanSummary.of(specs, {"average_bits_per_weight": 6}),
            quality={"heldout_action_error": 0.125},
            created_by="qvla_ros 0.0.0",
        )

    return make


@pytest.fixture(scope="session")
def layers(make_layer: LayerMaker) -> dict[str, PackedLinear]:
    """A layer of all widths with a K tail, one of 0-bit rows only, and one of all that is rare."""
    mixed = make_layer("tower.mixed", MIXED_BITS, 130)
    pruned = make_layer("tower.pruned", (0, 0, 0), 7)
    kept = torch.arange(0, 400, 2)
    grouped = make_layer("tower.grouped", (3, 16, 4, 0, 3), 400, 2, 8, kept)
    return {layer.name: layer for layer in (mixed, pruned, grouped)}


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """The other tensors: of every element size, a scalar and an empty one among them."""
    return {
        "float.norm.weight": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float32),
        "float.tower.mixed.bias": torch.arange(10).bfloat16(),
        "float.count": torch.tensor(7, dtype=torch.int64),
        "float.empty": torch.empty(0, 3),
        "processing.tokenizer_json": torch.tensor(list(b'{"a": 1}'), dtype=torch.uint8),
    }


@pytest.fixture
def checkpoint_path(
    tmp_path: Path,
    layers: dict[str, PackedLinear],
    tensors: dict[str, torch.Tensor],
    make_manifest: ManifestMaker,
) -> Path:
    """A valid checkpoint of ``layers`` and ``tensors``."""
    path = tmp_path / "tiny.qvla.safetensors"
    write_checkpoint(path, make_manifest(layers), layers, tensors)
    return path
