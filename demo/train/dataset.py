"""Demonstrations as training samples: cropped pixels, cached backbone features, action chunks."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from demo.train.demonstration import Demonstration, read_demonstration
from qvla_ros.atomic_file import atomic_file
from qvla_ros.models.image_processing import CROP_AREA, crop_and_resize, resize_lanczos
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.models.vision_transformer import VisionTransformer

_BATCH = 64
_TENSORS = ("pixels", "features", "states", "chunks", "aims")


@dataclass(frozen=True, slots=True)
class TaskSamples:
    """All samples of one instruction.

    Attributes:
        instruction: The task.
        pixels: ``uint8 [variants, n, views, 3, side, side]``.
        features: ``bfloat16 [variants, n, views, patches, width]`` of the frozen backbone.
        states: ``float32 [n, state_dim]``, robot units.
        chunks: ``float32 [n, horizon, action_dim]``, robot units.
        aims: ``float32 [n, 6]``: where the gripper closes in this episode, and where it opens
            again; positions of the end effector, m.
        demonstrations: How many episodes the samples come from.
    """

    instruction: str
    pixels: Tensor
    features: Tensor
    states: Tensor
    chunks: Tensor
    aims: Tensor
    demonstrations: int

    def to(self, device: torch.device) -> "TaskSamples":
        """The same with pixels and features on ``device``; the rest is small."""
        return replace(self, pixels=self.pixels.to(device), features=self.features.to(device))


def write_samples(path: Path, samples: TaskSamples) -> None:
    """Write them completely or not at all, so that an interrupted run need not begin anew."""
    told = {"instruction": samples.instruction, "demonstrations": str(samples.demonstrations)}
    tensors = {name: getattr(samples, name).contiguous() for name in _TENSORS}
    with atomic_file(path) as file:
        file.write(save(tensors, told))


def read_samples(path: Path) -> TaskSamples:
    """Read what ``write_samples`` wrote."""
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
    return TaskSamples(
        instruction=told["instruction"], demonstrations=int(told["demonstrations"]), **tensors
    )


def load_task(
    folder: Path,
    limit: int,
    robot: RobotConstants,
    backbone: VisionTransformer,
    norm: Tensor,
    variants: int = 2,
) -> TaskSamples:
    """Read up to ``limit`` demonstrations and run the frozen backbone over their images once.

    Args:
        folder: Of one task's demonstrations.
        limit: Demonstrations at most, in the order of their attempts.
        robot: Names of the cameras, size of a chunk.
        backbone: Frozen, on the device on which it is to run.
        norm: float32 ``[2, 3]``: mean and standard deviation of the backbone's input.
        variants: Crops kept of each image: the central one, and random ones.
    """
    demonstrations = [read_demonstration(file) for file in sorted(folder.glob("*.npz"))[:limit]]
    side = backbone.config.image_size
    rng = np.random.default_rng(0)
    pixels = torch.cat([_crops(d, robot, side, variants, rng) for d in demonstrations], dim=1)
    return TaskSamples(
        instruction=demonstrations[0].instruction,
        pixels=pixels,
        features=_features(pixels, backbone, norm),
        states=torch.from_numpy(np.concatenate([d.states[d.image_steps] for d in demonstrations])),
        chunks=torch.from_numpy(np.concatenate([_chunks(d, robot) for d in demonstrations])),
        aims=torch.from_numpy(np.concatenate([_aims(d) for d in demonstrations])),
        demonstrations=len(demonstrations),
    )


def _chunks(demonstration: Demonstration, robot: RobotConstants) -> np.ndarray:
    actions = demonstration.actions
    rest = np.zeros((robot.horizon, robot.action_dim), np.float32)
    rest[:, -1] = actions[-1, -1]  # after the end: no motion, the gripper as it was
    padded = np.concatenate([actions, rest])
    return np.stack([padded[step : step + robot.horizon] for step in demonstration.image_steps])


def _aims(demonstration: Demonstration) -> np.ndarray:
    """The episode's two places, once for each of its images."""
    closed = demonstration.actions[:, -1] < 0.5
    grasp = int(np.argmax(closed)) if closed.any() else len(closed) - 1
    opened = np.flatnonzero(~closed[grasp:])
    release = grasp + int(opened[0]) if len(opened) else len(closed) - 1
    places = np.concatenate([demonstration.states[step, :3] for step in (grasp, release)])
    return np.repeat(places[None], len(demonstration.image_steps), axis=0).astype(np.float32)


def _crops(
    demonstration: Demonstration,
    robot: RobotConstants,
    side: int,
    variants: int,
    rng: np.random.Generator,
) -> Tensor:
    edge = math.sqrt(CROP_AREA)
    views = []
    for camera in robot.image_names:
        frames = []
        for image in demonstration.images(camera):
            random = rng.uniform(edge / 2, 1 - edge / 2, (variants - 1, 2))
            boxes = np.array([[0.5, 0.5, edge], *([*place, edge] for place in random)])
            frames.append(crop_and_resize(resize_lanczos(image, side), boxes))
        views.append(np.stack(frames, axis=1))
    stacked = np.stack(views, axis=2)  # [variants, n, views, side, side, 3]
    return torch.from_numpy(stacked).permute(0, 1, 2, 5, 3, 4).contiguous()


def _features(pixels: Tensor, backbone: VisionTransformer, norm: Tensor) -> Tensor:
    device = next(backbone.parameters()).device
    flat = pixels.flatten(0, 2)
    mean, std = norm[:, :, None, None].to(device)
    batches = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(flat), _BATCH):
            batch = (flat[start : start + _BATCH].to(device).float() / 255 - mean) / std
            batches.append(backbone(batch).to(torch.bfloat16).cpu())
            if start % (100 * _BATCH) == 0:
                print(f"backbone features: {start}/{len(flat)}", flush=True)
    features = torch.cat(batches).clone()
    return features.unflatten(0, pixels.shape[:3])
