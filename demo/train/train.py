"""Train the demo VLA by behaviour cloning: ``python -m demo.train.train --help``.

The DINOv2-S-architecture tower is frozen and its features are cached; the SigLIP-like tower, the
projector, the language model, the state projector and the L1 head are trained from scratch.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.assemble import CACHE, SOURCE
from demo.pretrained import fetch_onnx, read_backbone
from demo.train.dataset import VARIANTS, TaskSamples, load_task
from demo.train.layout import (
    DINO,
    MEANS,
    SIGLIP_LIKE,
    STDS,
    dataset_statistics,
    train_tokenizer,
    write_small_files,
)
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.processing import Processing
from qvla_ros.models.registry import processing_settings
from qvla_ros.models.released_folder import open_small_files
from qvla_ros.models.released_layout import read_llama
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.models.vision_transformer import VisionTransformer

ROBOT = ROBOT_CONSTANTS["libero"]
STATE_NOISE = 0.03  # of the normalised range: the state must not be trusted to the last digit
EMA_DECAY = 0.998


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Choices of one training run.

    Attributes:
        steps: Optimizer steps.
        batch: Samples a step, divided evenly over the tasks.
        learning_rate: Peak of the cosine schedule.
        warmup: Steps of linear warm-up.
        seed: Of the choice of samples.
        weight_decay: Of AdamW.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    warmup: int = 150
    weight_decay: float = 0.05

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine down to 2 %."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


def frozen_backbone() -> VisionTransformer:
    """The pretrained tower without its last block."""
    backbone = VisionTransformer(DINO).eval().requires_grad_(False)
    tensors = read_backbone(fetch_onnx(CACHE), DINO.image_size // DINO.patch_size)
    live = {name: tensors[name] for name in backbone.state_dict()}
    live["patch_embed.proj.weight"] = live["patch_embed.proj.weight"].flatten(1)
    backbone.load_state_dict(live)
    return backbone


def train(
    network: OpenVlaOft,
    processing: Processing,
    tasks: list[TaskSamples],
    settings: TrainingSettings,
    on_snapshot: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
    """Fit the network; answer averaged weights and the loss curve ``(step, L1)``.

    ``on_snapshot`` gets the averaged weights every 500 steps.
    """
    trained = {
        name: parameter
        for name, parameter in network.named_parameters()
        if not name.startswith("vision_backbone.featurizer.")
    }
    optimizer = torch.optim.AdamW(
        trained.values(), lr=0.0, weight_decay=settings.weight_decay, betas=(0.9, 0.95), fused=True
    )
    average = {name: parameter.detach().clone() for name, parameter in trained.items()}
    rng = np.random.default_rng(settings.seed)
    curve, running, start = [], 0.0, time.monotonic()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        losses = [
            _loss(network, processing, task, settings.batch // len(tasks), rng) for task in tasks
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for name, parameter in trained.items():
            average[name].lerp_(parameter.detach(), 1 - decay)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == settings.steps - 1:
            curve.append((step, round(running, 5)))
            seconds = time.monotonic() - start
            eta = seconds / (step + 1) * (settings.steps - step - 1)
            print(f"step {step}/{settings.steps}  L1 {running:.4f}  ETA {eta:.0f} s", flush=True)
        if on_snapshot is not None and step % 500 == 499:
            on_snapshot(average)
    return average, curve


def _loss(
    network: OpenVlaOft,
    processing: Processing,
    task: TaskSamples,
    count: int,
    rng: np.random.Generator,
) -> Tensor:
    chosen = torch.from_numpy(rng.integers(0, len(task.states), count))
    variant = torch.from_numpy(rng.integers(0, VARIANTS, count))
    mean, std = (torch.tensor(rows[1])[:, None, None] for rows in (MEANS, STDS))
    pixels = (task.pixels[variant, chosen].flatten(0, 1).float() / 255 - mean) / std
    state = np.stack([processing.normalized_state(row) for row in task.states[chosen].numpy()])
    state += rng.normal(0, STATE_NOISE, state.shape).astype(np.float32)
    target = processing.normalized_actions(task.chunks[chosen].numpy()).clip(-1, 1)
    inputs = ModelInputs(
        pixels=pixels,
        token_ids=torch.tensor(processing.token_ids(task.instruction)).expand(count, -1),
        end_token_id=processing.end_token_id,
        state=torch.from_numpy(state),
    )
    with torch.autocast("cpu", torch.bfloat16):
        own = network.vision_backbone.fused_featurizer(pixels)
        frozen = task.features[variant, chosen].flatten(0, 1)
        patches = torch.cat([frozen, own], dim=-1).reshape(
            count, -1, DINO.width + SIGLIP_LIKE.width
        )
        actions = network.decode(patches, inputs)
    return (actions - torch.from_numpy(target)).abs().mean()


def main() -> None:
    """Load demonstrations, train, and write the trained half of the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="a folder for each task"
    )
    parser.add_argument("--demonstrations", type=int, default=120, help="at most, for each task")
    parser.add_argument("--out", type=Path, default=SOURCE)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="begin with the weights that are in --out"
    )
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    backbone = frozen_backbone()
    norm = torch.tensor([MEANS[0], STDS[0]])
    tasks = [
        load_task(folder, arguments.demonstrations, ROBOT, backbone, norm)
        for folder in arguments.data
    ]
    states = torch.cat([task.states for task in tasks]).numpy()
    actions = torch.cat([task.chunks[:, 0] for task in tasks]).numpy()
    episodes = sum(task.demonstrations for task in tasks)
    tokenizer = train_tokenizer([task.instruction for task in tasks])
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = write_small_files(
        arguments.out, tokenizer, dataset_statistics(states, actions, episodes)
    )
    small = open_small_files(arguments.out)
    processing = Processing(processing_settings(small, None, ROBOT), small.tokenizer_json)
    shape = OpenVlaOftConfig(
        (DINO, SIGLIP_LIKE),
        read_llama(config),
        len(ROBOT.image_names),
        ROBOT.horizon,
        ROBOT.action_dim,
        ROBOT.state_dim,
    )
    network = OpenVlaOft(shape)
    torch.nn.init.trunc_normal_(network.vision_backbone.fused_featurizer.pos_embed, std=0.02)
    if arguments.resume:
        before = load_file(arguments.out / "trained.safetensors")
        network.load_state_dict({k: t.float() for k, t in before.items()}, strict=False)
    settings = TrainingSettings(
        arguments.steps, arguments.batch, arguments.learning_rate, arguments.seed
    )
    start = time.monotonic()

    def save(weights: dict[str, Tensor]) -> None:
        half = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
        save_file(half, arguments.out / "trained.safetensors")

    weights, curve = train(network, processing, tasks, settings, save)
    save(weights)
    record = {
        "tasks": {
            t.instruction: {"demonstrations": t.demonstrations, "samples": len(t.states)}
            for t in tasks
        },
        "data_sha256": {
            str(folder.name): _digest(folder, arguments.demonstrations)
            for folder in arguments.data
        },
        "steps": arguments.steps,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - start),
        "l1_curve": curve,
    }
    file = arguments.out.parent / "training.json"
    runs = json.loads(file.read_text())["runs"] if arguments.resume else []
    file.write_text(json.dumps({"runs": [*runs, record]}) + "\n")


def _digest(folder: Path, limit: int) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.npz"))[:limit]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
