"""Pixels as OpenVLA saw them in training: Lanczos-3 resize, central crop, normalisation."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CROP_AREA = 0.9  # share of the image area that the training augmentation kept


def resize_lanczos(image: np.ndarray, side: int) -> np.ndarray:
    """Resize ``uint8 [h, w, 3]`` to ``uint8 [side, side, 3]`` by antialiased Lanczos-3.

    Pillow's filter is within two grey levels of TensorFlow's; OpenCV's Lanczos is not antialiased.
    """
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def crop_and_resize(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Cut boxes out of one image and scale each back to the image's size, bilinearly.

    Args:
        image: ``uint8 [side, side, 3]``.
        boxes: ``float [n, 3]``: centre y, centre x, side, all as shares of the image, corner-aligned
            as in TensorFlow's ``crop_and_resize``.

    Returns:
        ``uint8 [n, side, side, 3]``.
    """
    side = image.shape[0]
    steps = torch.linspace(-1, 1, side)
    centre = torch.as_tensor(boxes, dtype=torch.float32)
    rows = (2 * centre[:, 0:1] - 1) + centre[:, 2:3] * steps
    columns = (2 * centre[:, 1:2] - 1) + centre[:, 2:3] * steps
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, side, -1),
            rows[:, :, None].expand(-1, -1, side),
        ],
        dim=-1,
    )
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    source = pixels.expand(len(centre), -1, -1, -1)
    cropped = F.grid_sample(source, grid, mode="bilinear", align_corners=True)
    # TensorFlow's saturating float-to-uint8 conversion multiplies by 255.5 and truncates.
    levels = (cropped * (255.5 / 255)).clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def central_crop(image: np.ndarray) -> np.ndarray:
    """Keep the central 90 % of the area, scaled back to the full size; ``uint8 [s, s, 3]``."""
    box = np.array([[0.5, 0.5, math.sqrt(CROP_AREA)]])
    return crop_and_resize(image, box)[0]


def normalize(image: np.ndarray, means: np.ndarray, stds: np.ndarray) -> Tensor:
    """Normalise one image for every tower.

    Args:
        image: ``uint8 [side, side, 3]``.
        means: ``float32 [towers, 3]``, in units of the range 0..1.
        stds: ``float32 [towers, 3]``, likewise.

    Returns:
        float32 ``[towers * 3, side, side]``.
    """
    unit = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    mean = torch.from_numpy(means)[:, :, None, None]
    std = torch.from_numpy(stds)[:, :, None, None]
    return ((unit - mean) / std).flatten(0, 1)
