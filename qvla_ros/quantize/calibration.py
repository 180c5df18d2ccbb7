"""The frames on which sensitivity is measured."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qvla_ros.errors import CalibrationError
from qvla_ros.models.network import ModelInputs, VlaNetwork
from qvla_ros.models.processing import Processing, split_inputs, stack_inputs
from qvla_ros.observation import Observation

BATCH_FRAMES = 16
"""Frames that go through the network together."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Observations, processed as the robot processes them.

    Attributes:
        frames: One batch of one for each observation.
        fingerprint: SHA-256 of the observations: the same set gives the same table.
    """

    frames: tuple[ModelInputs, ...]
    fingerprint: str

    def batches(self, frames: int = BATCH_FRAMES) -> list[ModelInputs]:
        """The frames in order, up to ``frames`` together; one prompt length in a batch."""
        batches: list[list[ModelInputs]] = []
        for frame in self.frames:
            last = batches[-1] if batches else []
            if not last or len(last) == frames or last[0].token_ids.shape != frame.token_ids.shape:
                batches.append([frame])
            else:
                last.append(frame)
        return [stack_inputs(batch) for batch in batches]

    def taught_by(self, network: VlaNetwork) -> "CalibrationSet":
        """The same frames, each with the answer of ``network`` if its kind needs one to go on."""
        taught = [split_inputs(network.taught(batch)) for batch in self.batches()]
        return replace(self, frames=tuple(frame for batch in taught for frame in batch))


def calibration_set(
    observations: Sequence[Observation], processing: Processing, frames: int
) -> CalibrationSet:
    """Choose ``frames`` observations, evenly spaced over all that are given, and process them.

    Even spacing over whole episodes covers every phase of the task by its duration.

    Raises:
        CalibrationError: There are fewer observations than frames, or none is asked for.
    """
    if frames < 1:
        raise CalibrationError(f"at least one calibration frame is needed, not {frames}")
    if len(observations) < frames:
        raise CalibrationError(
            f"{frames} calibration frames are asked for, the bags hold {len(observations)}: "
            "record more, or ask for fewer with --frames"
        )
    chosen = [observations[(2 * i + 1) * len(observations) // (2 * frames)] for i in range(frames)]
    digest = hashlib.sha256()
    for observation in chosen:
        _update(digest, observation)
    return CalibrationSet(tuple(processing.prepare(one) for one in chosen), digest.hexdigest())


def _update(digest: "hashlib._Hash", observation: Observation) -> None:
    for name in sorted(observation.images):
        image = observation.images[name]
        digest.update(f"{name}{image.shape}".encode() + image.tobytes())
    digest.update(observation.state.tobytes() + observation.instruction.encode())
