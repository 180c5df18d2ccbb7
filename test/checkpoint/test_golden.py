"""Files of the format's version 1, kept as bytes: what was written once is read forever.

Each golden file is defined by a formula below, so reading gives known values and writing gives
known bytes. After a deliberate change of the format, raise ``SCHEMA_VERSION``, keep these files
(the reader must go on reading them) and add new ones.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qvla_ros.checkpoint.manifest import LayerSpec, Manifest, PlanSummary
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.kernels.reference import dequantize

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """A golden file: the bits of the rows and the columns of each layer, and other tensors."""

    layers: dict[str, tuple[tuple[int, ...], int]]
    tensors: dict[str, torch.Tensor]
    sha256: str


GOLDEN = {
    "mixed": Golden(
        {"blocks.0.mlp.fc1": ((4, 0, 2, 16, 8, 4, 2, 16), 130)},
        {
            "float.blocks.0.norm.weight": torch.arange(5) / 4,
            "processing.tokenizer_json": torch.tensor(list(b"{}"), dtype=torch.uint8),
        },
        "c6011c937e048b45331951adf3275670ad594dc0fedb77fd735fdb6aab82a071",
    ),
    "two_layers": Golden(
        {"b": ((4,) * 6, 64), "a": ((0, 0), 3)},
        {"float.b.bias": torch.arange(6).bfloat16(), "float.steps": torch.tensor(3)},
        "1a42dd6fecc0c02390995aeca021dde8f0fe590e9bc851393e82fcc69ebd7fd7",
    ),
    "no_layers": Golden(
        {}, {}, "179b0695ab44e3ab61497acdaca806e294f94ab97f6af8f8e3416d41fe5e6bd4"
    ),
}


def code(row: int, column: int, bits: int) -> int:
    return (7 * row + 3 * column) % 2**bits


def scale(row: int) -> float:
    return 2.0 ** -(row % 4 + 1)


def zero(row: int) -> float:
    return row % 3 + 0.5


def weight(row: int, column: int) -> float:
    return ((7 * row + 3 * column) % 31 - 15) / 8


def build_layer(name: str, row_bits: tuple[int, ...], columns: int) -> PackedLinear:
    rows = range(len(row_bits))
    return PackedLinear.assemble(
        name,
        columns,
        torch.tensor(row_bits),
        torch.tensor(
            [
                [code(row, column, min(row_bits[row], 8)) for column in range(columns)]
                for row in rows
            ],
            dtype=torch.uint8,
        ),
        torch.tensor([scale(row) for row in rows]).bfloat16(),
        torch.tensor([zero(row) for row in rows]).bfloat16(),
        torch.tensor([[weight(row, column) for column in range(columns)] for row in rows]),
    )


def write(golden: Golden, path: Path) -> None:
    layers = {name: build_layer(name, *shape) for name, shape in golden.layers.items()}
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
    for layer_name, (row_bits, columns) in golden.layers.items():
        layer = checkpoint.layers[layer_name]
        assert layer.bits_per_row().tolist() == list(row_bits)
        expected = [
            [expected_weight(row, column, bits) for column in range(columns)]
            for row, bits in enumerate(row_bits)
        ]
        assert dequantize(layer).tolist() == expected
    assert checkpoint.tensors.keys() == golden.tensors.keys()
    for tensor_name, tensor in golden.tensors.items():
        assert torch.equal(checkpoint.tensors[tensor_name], tensor)


def expected_weight(row: int, column: int, bits: int) -> float:
    if bits == 0:
        return 0.0
    if bits == 16:
        return weight(row, column)
    return (code(row, column, bits) - zero(row)) * scale(row)


def test_a_golden_file_says_what_it_is() -> None:
    manifest = read_checkpoint(FOLDER / "mixed.safetensors").manifest
    assert manifest.schema_version == 1
    assert manifest.family == "openvla_oft"
    assert manifest.plan.bit_histogram == {0: 1, 2: 2, 4: 2, 8: 1, 16: 2}
    assert manifest.plan.average_bits_per_weight == 6.5
    assert manifest.processing["text"] == "é"
