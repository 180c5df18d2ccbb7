"""A tiny network with random weights in the released OpenVLA-OFT layout, for tests of plumbing."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from demo.train.layout import train_tokenizer
from qvla_ros.models.action_head import L1ActionHead, ProprioProjector
from qvla_ros.models.openvla_oft import OpenVlaOft
from qvla_ros.models.registry import load_model
from qvla_ros.models.released_layout import expected_tensors, read_llama
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS, RobotConstants
from qvla_ros.models.vision_transformer import TowerConfig
from qvla_ros.observation import Observation
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.pipeline import write_quantized
from qvla_ros.quantize.quantized_model import LayerCodes, QuantizedModel
from qvla_ros.quantize.rounding import codes_on, nearest_grid
from qvla_ros.quantize.widths import WIDTHS

INSTRUCTION = "pick up the black bowl"
TOWERS = (
    TowerConfig(32, 3, 2, 64, 28, 14, registers=2, class_token=True, layer_scale=True),
    TowerConfig(24, 3, 2, 40, 28, 14, attention_pool=True),
)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 256,
}
KEY = "tiny"


def tiny_folder(path: Path, robot: RobotConstants = ROBOT_CONSTANTS["libero"]) -> Path:
    """Write a model folder: two shards, side files, statistics, tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = {
        "model_type": "openvla",
        "vision_towers": list(map(asdict, TOWERS)),
        "text_config": LLAMA,
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": {
            "input_sizes": [[3, 28, 28]] * 2,
            "means": [[0.48, 0.46, 0.41], [0.5, 0.5, 0.5]],
            "stds": [[0.23, 0.22, 0.22], [0.5, 0.5, 0.5]],
        },
        "dataset_statistics.json": {KEY: _statistics(robot)},
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    train_tokenizer([INSTRUCTION]).save(str(path / "tokenizer.json"))
    _write_shards(path)
    width = LLAMA["hidden_size"]
    head, proprio = L1ActionHead(width, robot.action_dim), ProprioProjector(robot.state_dim, width)
    for stem, module, dtype in (
        ("action_head", head, torch.bfloat16),
        ("proprio_projector", proprio, torch.float32),
    ):
        table = {f"module.{name}": value.to(dtype) for name, value in module.state_dict().items()}
        torch.save(table, path / f"{stem}--7_checkpoint.pt")
    return path


def _write_shards(path: Path) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (name, shape) in enumerate(
        expected_tensors(TOWERS, read_llama({"text_config": LLAMA})).items()
    ):
        spread = 0.2 if len(shape) > 1 else 1.0
        shards[index % 2][name] = (torch.randn(shape) * spread).to(torch.bfloat16)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(shard, path / file)
        weight_map |= dict.fromkeys(shard, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _statistics(robot: RobotConstants) -> dict:
    def ranges(size: int) -> dict:
        low, high = [-1.0 - i for i in range(size)], [2.0 + i for i in range(size)]
        return {"q01": low, "q99": high, "min": low, "max": high}

    mask = [True] * (robot.action_dim - 1) + [False]
    return {
        "action": {**ranges(robot.action_dim), "mask": mask},
        "proprio": ranges(robot.state_dim),
    }


def tiny_observation(seed: int = 0, stamp_ns: int = 0) -> Observation:
    """Random pixels and state that fit the tiny model."""
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for name in ("primary", "wrist")
    }
    return Observation(stamp_ns, images, rng.normal(size=8).astype(np.float32), INSTRUCTION)


def tiny_checkpoint(folder: Path) -> Path:
    """A packed checkpoint of the tiny model in which every width occurs."""
    model = load_model(tiny_folder(folder / "model"))
    layers = tuple(model.network.linear_layers())
    generator = torch.Generator().manual_seed(1)
    rows = {
        layer.name: torch.tensor(WIDTHS, dtype=torch.uint8)[
            torch.randint(1, len(WIDTHS), (layer.rows,), generator=generator)
        ]
        for layer in layers
    }
    rows[layers[0].name][:3] = 0
    quantized = nearest_codes(model.network, rows)
    budget = BitBudget(average_bits_per_weight=16.0)
    return write_quantized(model, quantized, budget, folder / "tiny.qvla.safetensors").path


def nearest_codes(network: OpenVlaOft, row_bits: dict[str, torch.Tensor]) -> QuantizedModel:
    """Round every row to the nearest level of its own grid."""
    finished = {}
    for layer in network.linear_layers():
        weight = linear_weight(network, layer)
        codes = LayerCodes(layer, row_bits[layer.name], weight)
        for bits, index in codes.rows_by_width():
            grid = nearest_grid(weight[index], bits, torch.ones(layer.columns))
            codes.put(index, grid, codes_on(weight[index], grid, bits))
        finished[layer.name] = codes.finished()
    return QuantizedModel(finished)
