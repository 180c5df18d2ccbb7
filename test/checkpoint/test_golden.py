"""Files of the format's version 2, kept as bytes: what was written once is read forever.

Each golden file is defined by a formula below, so reading gives known values and writing gives
known bytes. After a deliberate change of the format, raise ``SCHEMA_VERSION`` and make new ones:
``python test/checkpoint/test_golden.py`` writes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.kernels.reference import dequantize

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenLayer:
    """The bits of the rows, the columns, and which columns are kept: every ``step``-th."""

    row_bits: tuple[int, ...]
    columns: int
    groups: bool = False
    activation_bits: int = 16
    step: int = 1

    @property
    def kept(self) -> range:
        return range(0, self.columns, self.step)


@dataclass(frozen=True)
class Golden:
    """A golden file: its layers by name, and other tensors."""

    layers: dict[str, GoldenLayer]
    tensors: dict[str, torch.Tensor]
    sha256: str


GOLDEN = {
    "mixed": Golden(
        {"blocks.0.mlp.fc1": GoldenLayer((4, 0, 2, 16, 8, 4, 3, 16), 130)},
        {
            "float.blocks.0.norm.weight": torch.arange(5) / 4,
            "processing.tokenizer_json": torch.tensor(list(b"{}"), dtype=torch.uint8),
        },
        "7f95e6620a09c3a989b0a0abd589d9be3b5b1a381b4edf49e1b6dd9982ee11f0",
    ),
    "groups": Golden(
        {
            "tail": GoldenLayer((3, 2, 16, 8), 130, groups=True),
            "whole": GoldenLayer((4, 4, 0), 256, groups=True, activation_bits=8),
        },
        {},
        "466f074f79d60bafa43b616c3649225c8d14f9807698f2c0b538cc5ecfb39601",
    ),
    "removed_columns": Golden(
        {
            "rows": GoldenLayer((4, 16, 0, 3), 260, step=2),
            "groups": GoldenLayer((2, 8), 400, groups=True, step=3),
        },
        {},
        "63fc5d128d5f800f0064a05327f378f4cea3b1d290fc55e7b98c03eb7493fdfe",
    ),
    "two_layers": Golden(
        {"b": GoldenLayer((4,) * 6, 64), "a": GoldenLayer((0, 0), 3)},
        {"float.b.bias": torch.arange(6).bfloat16(), "float.steps": torch.tensor(3)},
        "3f3b0290675a07a49b75151c427793a2977e5ff787f1c4c64c7a91fcdb4171bc",
    ),
    "no_layers": Golden(
        {}, {}, "7750b745e1b21a9707360392f22f635603d2ff2d076741ad35d4230ec168c734"
    ),
}


def code(row: int, column: int, bits: int) -> int:
    return (7 * row + 3 * column) % 2**bits


def scale(row: int, group: int) -> float:
    return 2.0 ** -((row + group) % 4 + 1)


def zero(row: int, group: int) -> float:
    return (row + group) % 3 + 0.5


def weight(row: int, column: int) -> float:
    return ((7 * row + 3 * column) % 31 - 15) / 8


def build_layer(name: str, golden: GoldenLayer) -> PackedLinear:
    rows, kept = range(len(golden.row_bits)), range(len(golden.kept))
    groups = range(-(-len(kept) // 128))

    def grid(value: Callable[[int, int], float]) -> torch.Tensor:
        if golden.groups:
            return torch.tensor([[value(row, group) for group in groups] for row in rows])
        return torch.tensor([value(row, 0) for row in rows])

    codes = [[code(row, at, min(golden.row_bits[row], 8)) for at in kept] for row in rows]
    return PackedLinear.assemble(
        name,
        golden.columns,
        torch.tensor(golden.row_bits),
        torch.tensor(codes, dtype=torch.uint8),
        grid(scale).bfloat16(),
        grid(zero).bfloat16(),
        torch.tensor([[weight(row, at) for at in kept] for row in rows]),
        activation_bits=golden.activation_bits,
        input_columns=None if golden.step == 1 else torch.tensor(golden.kept),
    )


def write(golden: Golden, path: Path) -> None:
    layers = {name: build_layer(name, layer) for name, layer in golden.layers.items()}
    specs = [LayerSpec.of(layer) for layer in layers.values()]
    manifest = Manifest(
        family="openvla_oft",
        model_id="golden",
        source_fingerprint="0123456789abcdef" * 4,
        model_config={"hidden_size": 130, "norm_eps": 1e-06, "bias": True, "none": None},
        processing={"image_size": 224, "statistics": {"q01": [-0.5, 0.25]}, "text": "é"},
        plan=PlanSummary.of(specs, {"average_bits_per_weight": 4.0}),
        quality={"heldout_action_error": 0.0625},
        created_by="qvla_ros golden",
    )
    write_checkpoint(path, manifest, layers, golden.tensors)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    write(GOLDEN[name], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_is_read_as_its_formula(name: str) -> None:
    golden = GOLDEN[name]
    checkpoint = read_checkpoint(FOLDER / f"{name}.safetensors")
    assert checkpoint.manifest.sha256 == golden.sha256
    assert list(checkpoint.layers) == list(golden.layers)
    for layer_name, expected in golden.layers.items():
        layer = checkpoint.layers[layer_name]
        assert layer.bits_per_row().tolist() == list(expected.row_bits)
        assert layer.activation_bits == expected.activation_bits
        assert dequantize(layer).tolist() == expected_weights(expected)
    assert checkpoint.tensors.keys() == golden.tensors.keys()
    for tensor_name, tensor in golden.tensors.items():
        assert torch.equal(checkpoint.tensors[tensor_name], tensor)


def expected_weights(golden: GoldenLayer) -> list[list[float]]:
    weights = []
    for row, bits in enumerate(golden.row_bits):
        values = [0.0] * golden.columns
        for at, column in enumerate(golden.kept):
            group = at // 128 if golden.groups else 0
            if bits == 16:
                values[column] = weight(row, at)
            elif bits:
                values[column] = (code(row, at, bits) - zero(row, group)) * scale(row, group)
        weights.append(values)
    return weights


def test_a_golden_file_says_what_it_is() -> None:
    manifest = read_checkpoint(FOLDER / "mixed.safetensors").manifest
    assert manifest.schema_version == 2
    assert manifest.family == "openvla_oft"
    assert manifest.plan.bit_histogram == {0: 1, 2: 1, 3: 1, 4: 2, 8: 1, 16: 2}
    assert manifest.plan.average_bits_per_weight == 6.625
    assert manifest.processing["text"] == "é"


if __name__ == "__main__":
    for golden_name, golden_file in GOLDEN.items():
        write(golden_file, FOLDER / f"{golden_name}.safetensors")
