"""Rotations as three numbers."""

from collections.abc import Sequence

import numpy as np


def rotation_vector(quaternion: Sequence[float]) -> np.ndarray:
    """Axis times angle in [0, pi], ``float64 [3]`` rad, of a quaternion x y z w.

    Raises:
        ValueError: The quaternion is not finite or has no direction.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not np.isfinite(norm) or norm < 1e-6:
        raise ValueError(f"{q.tolist()} is no rotation")
    q = q / (norm if q[3] >= 0 else -norm)
    sine = float(np.linalg.norm(q[:3]))
    # Near no rotation the vector is twice the quaternion's; the quotient would be 0 / 0.
    scale = 2.0 if sine < 1e-9 else 2.0 * np.arctan2(sine, q[3]) / sine
    return scale * q[:3]


def quaternion_of_vector(vector: Sequence[float]) -> np.ndarray:
    """The quaternion x y z w, ``float64 [4]``, of axis times angle in rad."""
    v = np.asarray(vector, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    share = 0.5 if angle < 1e-9 else np.sin(angle / 2) / angle
    return np.array([*(share * v), np.cos(angle / 2)])


def quaternion_of_euler(angles: Sequence[float]) -> np.ndarray:
    """The quaternion x y z w of turns about the fixed axes x, then y, then z, in rad."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.asarray(angles) / 2), np.cos(np.asarray(angles) / 2)
    return np.array(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ]
    )
