"""Does a replay say what the node said? Published chunks against the inputs of their own bag."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_reader import BagMessage, read_bag
from qvla_ros.evaluate.episode import Episode, read_episode
from qvla_ros.policy.frame_sync import SyncSettings
from qvla_ros.policy.inference import ServedPolicy

CHUNK_TYPE = "qvla_ros/msg/ActionChunk"


@dataclass(frozen=True, slots=True)
class Parity:
    """Published chunks, and what the replay makes of the same inputs.

    Attributes:
        chunks: Chunks in the bag; holds are none.
        unmatched: No inputs of the bag make an observation of the chunk's stamp and instruction.
        mismatches: The replay's chunk has another size, or differs by more than the tolerance.
        greatest_difference: Of any value of the chunks that were compared, robot units.
    """

    chunks: int
    unmatched: int
    mismatches: int
    greatest_difference: float


def check_parity(
    policy: ServedPolicy,
    path: Path,
    layout: BagLayout,
    topic: str = "/policy/action_chunk",
    settings: SyncSettings | None = None,
    tolerance: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Parity:
    """Infer again from the inputs of every chunk that a node has published.

    The node has to publish chunks as the policy says them: strategy ``latest_only``, nothing
    clamped.

    Args:
        policy: The checkpoint that the node served.
        path: A bag of the node's inputs and of its chunks. It has to define its message types, as
            MCAP bags do, and SQLite bags since Iron.
        layout: Where the inputs stand.
        topic: Where the chunks stand.
        settings: The node's limits in time.
        tolerance: Greatest difference of a value that is no mismatch, robot units.
        on_progress: Called with chunks done and chunks in all.

    Raises:
        CalibrationError: The bag cannot be read, or it holds no chunk.
    """
    messages = read_bag(path, {topic: (CHUNK_TYPE,)}).of(topic)
    published = [one for one in messages if one.message.horizon > 0]
    if not published:
        raise CalibrationError(f"bag {path}, topic {topic}: holds no chunk")
    episode = read_episode(path, layout, settings)
    by_key = _index(episode)
    unmatched, differences = 0, []
    for done, one in enumerate(published, start=1):
        indices = by_key.get((one.stamp_ns, one.message.instruction), [])
        if indices:
            differences.append(min(_difference(policy, episode, i, one) for i in indices))
        else:
            unmatched += 1
        if on_progress is not None:
            on_progress(done, len(published))
    mismatches = sum(not difference <= tolerance for difference in differences)
    return Parity(len(published), unmatched, mismatches, max(differences, default=0.0))


def _index(episode: Episode) -> dict[tuple[int, str], list[int]]:
    """Stamp and instruction to the observations that have them: a slow source may date several."""
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index in range(len(episode.observations)):
        try:
            seen = episode.observations[index]
        except CalibrationError:
            continue  # the node could not use it either, so no chunk answers it
        found[seen.stamp_ns, seen.instruction].append(index)
    return found


def _difference(
    policy: ServedPolicy, episode: Episode, index: int, published: BagMessage
) -> float:
    said = policy.infer(episode.observations[index]).chunk.actions
    message = published.message
    if (message.horizon, message.dim) != said.shape or message.data.size != said.size:
        return float("inf")
    return float(np.abs(said - message.data.reshape(said.shape)).max())
