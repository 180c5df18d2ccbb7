"""What a model folder with random weights holds: sizes, configuration, statistics, tensors."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.action_head import L1ActionHead, ProprioProjector
from qvla_ros.models.released_layout import Shape, expected_tensors, read_llama, read_towers
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.models.synthetic_tokenizer import SIZE, synthetic_tokenizer
from qvla_ros.models.synthetic_weights import ACTION_BINS
from qvla_ros.models.vision_transformer import TowerConfig

Family = Literal["openvla_oft", "openvla"]
PADDING = 64
"""Rows that the vocabulary ends with and no token has; action bins stand right before them."""

_RELEASED_TOWERS = "dinosiglip-vit-so-224px"
_MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
_STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """What kind of folder is made.

    Attributes:
        family: Of the released layouts.
        robot: Whose sizes the action head and the statistics have.
        towers: Sizes of both towers; ``None`` for the released ones, known by their id.
        llama: ``text_config``: what differs from Llama-2 7B as OpenVLA has it.
        unnorm_keys: Names of the data sets that there are statistics of.
        shards: Files that the tensors are spread over.
        seed: Of all weights.
    """

    family: Family
    robot: RobotConstants
    towers: tuple[TowerConfig, TowerConfig] | None
    llama: Mapping[str, int | float | str]
    unnorm_keys: tuple[str, ...] = ("synthetic",)
    shards: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shards < 1 or not self.unnorm_keys:
            raise ConfigurationError("a folder needs at least one shard and one statistics key")
        if self.seed < 0:
            raise ConfigurationError(f"the seed must not be negative, as {self.seed} is")
        if self.vocabulary < SIZE + ACTION_BINS + PADDING:
            raise ConfigurationError(
                f"vocab_size must be at least {SIZE + ACTION_BINS + PADDING}: {SIZE} tokens, "
                f"{ACTION_BINS} action bins, {PADDING} of padding"
            )

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(read_llama(self.config())["vocab_size"] or 0)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Tensors of the shards."""
        config = self.config()
        return expected_tensors(read_towers(config), read_llama(config))

    @property
    def side_shapes(self) -> dict[str, tuple[torch.dtype, dict[str, Shape]]]:
        """Tensors of the files beside the shards, by the file's stem."""
        if self.family == "openvla":
            return {}
        width = int(read_llama(self.config())["hidden_size"] or 0)
        with torch.device("meta"):
            head = L1ActionHead(width, self.robot.action_dim)
            proprio = ProprioProjector(self.robot.state_dim, width)
        return {
            "action_head": (torch.bfloat16, _shapes(head)),
            "proprio_projector": (torch.float32, _shapes(proprio)),
        }

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors."""
        total = 2 * count_numbers(self.shapes)
        for dtype, shapes in self.side_shapes.values():
            total += dtype.itemsize * count_numbers(shapes)
        return total

    def config(self) -> dict[str, object]:
        """``config.json``."""
        text = {
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": 32064,
            **self.llama,
        }
        config: dict[str, object] = {
            "architectures": ["OpenVLAForActionPrediction"],
            "model_type": "openvla",
            "arch_specifier": "no-align+fused-gelu-mlp",
            "image_resize_strategy": "resize-naive",
            "image_sizes": [self._side, self._side],
            "llm_backbone_id": "llama2-7b-pure",
            "n_action_bins": ACTION_BINS,
            "pad_to_multiple_of": PADDING,
            "text_config": text,
            "torch_dtype": "bfloat16",
            "use_fused_vision_backbone": True,
            "vision_backbone_id": _RELEASED_TOWERS if self.towers is None else "synthetic",
        }
        if self.towers is not None:
            config["vision_towers"] = [asdict(tower) for tower in self.towers]
        return {**config, "norm_stats": self.statistics()}

    @property
    def _side(self) -> int:
        return 224 if self.towers is None else self.towers[0].image_size

    def small_files(self) -> dict[str, dict]:
        """Every JSON file by its name."""
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        files: dict[str, dict] = {
            "config.json": self.config(),
            "preprocessor_config.json": {
                "image_processor_type": "PrismaticImageProcessor",
                "image_resize_strategy": "resize-naive",
                "input_sizes": [[3, self._side, self._side]] * 2,
                "interpolations": ["bicubic", "bicubic"],
                "means": _MEANS,
                "stds": _STDS,
                "use_fused_vision_backbone": True,
            },
            "special_tokens_map.json": special,
            "tokenizer_config.json": {**special, "tokenizer_class": "LlamaTokenizer"},
            "generation_config.json": {"_from_model_config": True},
            "tokenizer.json": json.loads(synthetic_tokenizer().to_str()),
        }
        if self.family == "openvla_oft":
            files["dataset_statistics.json"] = self.statistics()
        return files

    def statistics(self) -> dict[str, dict]:
        """Ranges of actions and, if the robot has one, of its state, by data set."""
        robot = self.robot
        mask = [True] * (robot.action_dim - 1) + [False]  # the gripper is not normalised
        entry: dict[str, object] = {
            "action": {**_ranges(robot.action_dim, 0.3), "mask": mask},
            "num_transitions": 10_000,
            "num_trajectories": 100,
        }
        if robot.state_dim:
            entry["proprio"] = _ranges(robot.state_dim, 1.0)
        return dict.fromkeys(self.unnorm_keys, entry)


_TINY_TOWERS = (
    TowerConfig(32, 3, 2, 64, 28, 14, registers=2, class_token=True, layer_scale=True),
    TowerConfig(24, 3, 2, 40, 28, 14, attention_pool=True),
)
_SMALL_TOWERS = (
    TowerConfig(192, 6, 6, 768, 112, 14, registers=4, class_token=True, layer_scale=True),
    TowerConfig(128, 5, 4, 512, 112, 14, attention_pool=True),
)
_Scale = tuple[tuple[TowerConfig, TowerConfig] | None, dict[str, int | float | str]]
SCALES: dict[str, _Scale] = {
    "tiny": (
        _TINY_TOWERS,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "vocab_size": SIZE + ACTION_BINS + PADDING,
        },
    ),
    "small": (
        _SMALL_TOWERS,
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "max_position_embeddings": 512,
            "vocab_size": 1024,
        },
    ),
    "wide": (None, {"num_hidden_layers": 2}),
    "7b": (None, {}),
}
"""Towers and ``text_config`` by the name of a size; ``wide`` is full width with few Llama layers."""


def _shapes(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def count_numbers(shapes: Mapping[str, Shape]) -> int:
    """Numbers in all these tensors."""
    return sum(map(math.prod, shapes.values()))


def _ranges(size: int, scale: float) -> dict[str, list[float]]:
    """Summary of a made-up data set, another range for each dimension."""
    high = scale * (1 + 0.1 * np.arange(size))
    low = -0.8 * high
    table = {
        "mean": 0.1 * high,
        "std": 0.3 * high,
        "max": 1.2 * high,
        "min": 1.2 * low,
        "q01": low,
        "q99": high,
    }
    return {key: [round(float(number), 6) for number in values] for key, values in table.items()}
