"""Demonstrations as training samples: cropped pixels, cached backbone features, action chunks."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.train.demonstration import Demonstration, read_demonstration
from qvla_ros.models.image_processing import CROP_AREA, crop_and_resize, resize_lanczos
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.models.vision_transformer import VisionTransformer

VARIANTS = 2  # crops kept of each image: the central one, and a random one


@dataclass(frozen=True, slots=True)
class TaskSamples:
    """All samples of one instruction.

    Attributes:
        instruction: The task.
        pixels: ``uint8 [variants, n, views, 3, side, side]``.
        features: ``bfloat16 [variants, n, views, patches, width]`` of the frozen backbone.
        states: ``float32 [n, state_dim]``, robot units.
        chunks: ``float32 [n, horizon, action_dim]``, robot units.
        demonstrations: How many episodes the samples come from.
    """

    instruction: str
    pixels: Tensor
    features: Tensor
    states: Tensor
    chunks: Tensor
    demonstrations: int


def load_task(
    folder: Path, limit: int, robot: RobotConstants, backbone: VisionTransformer, norm: Tensor
) -> TaskSamples:
    """Read up to ``limit`` demonstrations and run the frozen backbone over their images once.

    ``norm`` is float32 ``[2, 3]``: mean and standard deviation of the backbone's input.
    """
    demonstrations = [read_demonstration(file) for file in sorted(folder.glob("*.npz"))[:limit]]
    side = backbone.config.image_size
    rng = np.random.default_rng(0)
    pixels = torch.cat([_crops(d, robot, side, rng) for d in demonstrations], dim=1)
    return TaskSamples(
        instruction=demonstrations[0].instruction,
        pixels=pixels,
        features=_features(pixels, backbone, norm),
        states=torch.from_numpy(np.concatenate([d.states[d.image_steps] for d in demonstrations])),
        chunks=torch.from_numpy(np.concatenate([_chunks(d, robot) for d in demonstrations])),
        demonstrations=len(demonstrations),
    )


def _chunks(demonstration: Demonstration, robot: RobotConstants) -> np.ndarray:
    actions = demonstration.actions
    rest = np.zeros((robot.horizon, robot.action_dim), np.float32)
    rest[:, -1] = actions[-1, -1]  # after the end: no motion, the gripper as it was
    padded = np.concatenate([actions, rest])
    return np.stack([padded[step : step + robot.horizon] for step in demonstration.image_steps])


def _crops(
    demonstration: Demonstration, robot: RobotConstants, side: int, rng: np.random.Generator
) -> Tensor:
    edge = math.sqrt(CROP_AREA)
    views = []
    for camera in robot.image_names:
        frames = []
        for image in demonstration.images(camera):
            random = rng.uniform(edge / 2, 1 - edge / 2, 2)
            boxes = np.array([[0.5, 0.5, edge], [*random, edge]])
            frames.append(crop_and_resize(resize_lanczos(image, side), boxes))
        views.append(np.stack(frames, axis=1))
    stacked = np.stack(views, axis=2)  # [variants, n, views, side, side, 3]
    return torch.from_numpy(stacked).permute(0, 1, 2, 5, 3, 4).contiguous()


def _features(pixels: Tensor, backbone: VisionTransformer, norm: Tensor) -> Tensor:
    flat = pixels.flatten(0, 2)
    mean, std = norm[:, :, None, None]
    batches = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(flat), 64):
            batch = (flat[start : start + 64].float() / 255 - mean) / std
            batches.append(backbone(batch).to(torch.bfloat16))
            if start % 6400 == 0:
                print(f"backbone features: {start}/{len(flat)}", flush=True)
    features = torch.cat(batches).clone()
    return features.unflatten(0, pixels.shape[:3])
