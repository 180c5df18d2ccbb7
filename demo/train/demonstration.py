"""One demonstration as a file: what the expert saw, and what it would have done."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvla_ros.atomic_file import atomic_file
from qvla_ros.image_codec import decode_compressed


@dataclass(frozen=True, slots=True)
class DemonstrationOrigin:
    """Where a demonstration comes from.

    Attributes:
        suite: LIBERO suite.
        task: Index of the task in the suite.
        seed: Seed of the collection.
        attempt: Number of the attempt in the collection; with ``seed`` it fixes the episode.
        noise: Standard deviation of the noise that was added to the executed actions.
        mujoco: Version of the simulator.
    """

    suite: str
    task: int
    seed: int
    attempt: int
    noise: float
    mujoco: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A successful episode of ``steps`` control steps, images recorded at some of them.

    Attributes:
        jpegs: Camera name to the compressed images, one for each of ``image_steps``.
        image_steps: ``int32 [images]``, the control steps at which images were recorded.
        states: ``float32 [steps, 8]`` proprioception before each action.
        actions: ``float32 [steps, 7]`` the expert's clean actions, dataset convention.
        instruction: The task in natural language.
        origin: How to collect the same episode again.
    """

    jpegs: dict[str, list[bytes]]
    image_steps: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    instruction: str
    origin: DemonstrationOrigin

    def images(self, camera: str) -> np.ndarray:
        """All images of one camera, ``uint8 [images, height, width, 3]`` RGB."""
        return np.stack([decode_compressed(data) for data in self.jpegs[camera]])


def write_demonstration(path: Path, demonstration: Demonstration) -> None:
    """Write one ``.npz`` file atomically.

    Keys: for each camera ``{camera}_jpeg`` (``uint8``, all its files one after the other) and
    ``{camera}_jpeg_ends`` (``int64 [images]``, where each one ends), then ``cameras``,
    ``image_steps``, ``states``, ``actions``, ``instruction`` and ``origin`` (JSON).
    """
    arrays: dict[str, Any] = {
        "cameras": np.array(list(demonstration.jpegs)),
        "image_steps": demonstration.image_steps.astype(np.int32),
        "states": demonstration.states.astype(np.float32),
        "actions": demonstration.actions.astype(np.float32),
        "instruction": np.array(demonstration.instruction),
        "origin": np.array(json.dumps(asdict(demonstration.origin), sort_keys=True)),
    }
    for camera, files in demonstration.jpegs.items():
        arrays[f"{camera}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{camera}_jpeg_ends"] = np.cumsum([len(data) for data in files], dtype=np.int64)
    with atomic_file(path) as stream:
        np.savez_compressed(stream, **arrays)


def read_demonstration(path: Path) -> Demonstration:
    """Read what ``write_demonstration`` has written."""
    with np.load(path, allow_pickle=False) as arrays:
        return Demonstration(
            jpegs={str(camera): _split(arrays, str(camera)) for camera in arrays["cameras"]},
            image_steps=arrays["image_steps"],
            states=arrays["states"],
            actions=arrays["actions"],
            instruction=str(arrays["instruction"]),
            origin=DemonstrationOrigin(**json.loads(str(arrays["origin"]))),
        )


def _split(arrays: np.lib.npyio.NpzFile, camera: str) -> list[bytes]:
    data = arrays[f"{camera}_jpeg"].tobytes()
    ends = arrays[f"{camera}_jpeg_ends"].tolist()
    return [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
