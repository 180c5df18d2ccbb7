"""The small files of the demo model's folder: configuration, statistics, preprocessor, tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qvla_ros.models.processing import PROMPT
from qvla_ros.models.vision_transformer import TowerConfig

UNNORM_KEY = "libero_spatial_demo"
IMAGE_SIZE = 112
DINO = TowerConfig(384, 12, 6, 1536, IMAGE_SIZE, 14, class_token=True, layer_scale=True)
SIGLIP_LIKE = TowerConfig(128, 4, 4, 512, IMAGE_SIZE, 14, attention_pool=True)
# ImageNet's statistics, then SigLIP's: what each tower's family is normalised with.
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]
LANGUAGES: dict[str, dict[str, int | float | str]] = {
    "small": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
    },
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 22,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
    },
}
"""The language model: trained from scratch, or begun with SmolLM2-135M-Instruct's first layers."""

_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def train_tokenizer(instructions: list[str]) -> Tokenizer:
    """A small byte-pair tokenizer with Llama's conventions (``▁`` for a space)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Replace("▁", " ")
    alphabet = [chr(code) for code in range(32, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=256, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    corpus = [PROMPT.format(instruction=text.lower()) for text in instructions]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def write_small_files(
    folder: Path, tokenizer: Tokenizer, statistics: dict, language: str = "small"
) -> dict:
    """Write every JSON file of the released layout; answer ``config.json``."""
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    config = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "n_action_bins": 256,
        "pad_token_id": tokenizer.token_to_id("<pad>"),
        "pad_to_multiple_of": 64,
        "text_config": {**LANGUAGES[language], "vocab_size": vocabulary},
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "demo-dinov2s-sigliplike-112px",
        "vision_towers": [asdict(DINO), asdict(SIGLIP_LIKE)],
        "norm_stats": statistics,
    }
    preprocessor = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, IMAGE_SIZE, IMAGE_SIZE]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": MEANS,
        "stds": STDS,
        "use_fused_vision_backbone": True,
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    files = {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "dataset_statistics.json": statistics,
        "special_tokens_map.json": special,
        "added_tokens.json": {"<pad>": tokenizer.token_to_id("<pad>")},
        "tokenizer_config.json": {**special, "tokenizer_class": "LlamaTokenizer"},
        "generation_config.json": {"_from_model_config": True},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    return config


def dataset_statistics(states: np.ndarray, actions: np.ndarray, episodes: int) -> dict:
    """Statistics in the released form; ``states [n, 8]``, ``actions [n, 7]`` in robot units."""
    mask = [True] * (actions.shape[1] - 1) + [False]  # the gripper is not normalised
    return {
        UNNORM_KEY: {
            "action": {**_summary(actions), "mask": mask},
            "proprio": _summary(states),
            "num_transitions": len(actions),
            "num_trajectories": episodes,
        }
    }


def _summary(values: np.ndarray) -> dict[str, list[float]]:
    table = {
        "mean": values.mean(0),
        "std": values.std(0),
        "max": values.max(0),
        "min": values.min(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }
    return {key: [float(number) for number in numbers] for key, numbers in table.items()}
