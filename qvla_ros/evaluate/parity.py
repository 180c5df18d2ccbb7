"""Does a replay say what the node said? Published chunks against the inputs of their own bag."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_reader import BagMessage, read_bag
from qvla_ros.evaluate.episode import Episode, read_episode
from qvla_ros.policy.chunk_plan import clamped, make_plan
from qvla_ros.policy.chunk_strategy import Accepted, ChunkStrategy, LatestOnly, action_index
from qvla_ros.policy.frame_sync import SyncSettings
from qvla_ros.policy.inference import ServedPolicy
from qvla_ros.policy.schedule import SchedulerSettings
from qvla_ros.sensor_messages import stamp_to_ns

CHUNK_TYPE = "qvla_ros/msg/ActionChunk"


@dataclass(frozen=True, slots=True)
class Parity:
    """Published chunks, and what the replay makes of the same inputs.

    Attributes:
        chunks: Chunks in the bag; holds are none.
        unmatched: No inputs of the bag make an observation of the chunk's stamp and instruction.
        unknown: Chunks that were mixed with one that is not in the bag, or is unmatched.
        mismatches: The replay's chunk has another size, or differs by more than the tolerance.
        greatest_difference: Of any value of the chunks that were compared, robot units.
    """

    chunks: int
    unmatched: int
    unknown: int
    mismatches: int
    greatest_difference: float


@dataclass(frozen=True, slots=True)
class Planner:
    """How a node makes chunks of what its policy says.

    Attributes:
        settings: Of its scheduler: the time to live and, where chunks are clamped, the limits.
            Where they are refused the limits change nothing: a chunk that was sent was not.
        strategy: What it makes of overlapping chunks.
    """

    settings: SchedulerSettings
    strategy: ChunkStrategy

    @classmethod
    def of(
        cls, policy: ServedPolicy, strategy: ChunkStrategy | None = None, ttl_ns: int = 0
    ) -> "Planner":
        """A node without limits.

        Args:
            policy: What it serves.
            strategy: ``None`` for ``latest_only``.
            ttl_ns: A chunk's time to live; 0 is the policy's horizon, as of the node's parameter.
        """
        horizon_ns = policy.horizon * policy.period_ns
        settings = SchedulerSettings(ttl_ns or horizon_ns, max_observation_age_ns=horizon_ns)
        return cls(settings, strategy or LatestOnly())

    @property
    def looks_back(self) -> bool:
        """Whether what is sent depends on the chunks before it."""
        return self.strategy.depth > 1 or self.settings.clamp

    def plan(
        self,
        before: Sequence[tuple[ActionChunk, int]],
        followed: ActionChunk | None,
        chunk: ActionChunk,
        now_ns: int,
    ) -> np.ndarray | None:
        """What is published of a chunk, ``float32 [horizon, action_dim]``; ``None`` if nothing.

        Args:
            before: The episode's chunks before it, each with the time at which it was taken.
            followed: What was published of the last of them.
            chunk: As the policy says it.
            now_ns: When it was taken.
        """
        if now_ns >= self.settings.valid_until_ns(chunk):
            return None
        said = [*before, (chunk, now_ns)][-self.strategy.depth :]
        mixed = [Accepted(clamped(one, self.settings)[0], at_ns) for one, at_ns in said]
        row = None
        if followed is not None and now_ns < self.settings.valid_until_ns(followed):
            row = followed.actions[action_index(followed, now_ns)]
        return make_plan(mixed, self.strategy, self.settings, row).chunk.actions


def check_parity(
    policy: ServedPolicy,
    path: Path,
    layout: BagLayout,
    topic: str = "/policy/action_chunk",
    settings: SyncSettings | None = None,
    planner: Planner | None = None,
    tolerance: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Parity:
    """Infer again from the inputs of every chunk that a node has published, and plan as it did.

    Args:
        policy: The checkpoint that the node served.
        path: A bag of the node's inputs and of its chunks. It has to define its message types, as
            MCAP bags do, and SQLite bags since Iron.
        layout: Where the inputs stand.
        topic: Where the chunks stand.
        settings: The node's limits in time.
        planner: How the node planned; ``None`` for ``latest_only`` without limits.
        tolerance: Greatest difference of a value that is no mismatch, robot units.
        on_progress: Called with chunks done and chunks in all.

    Raises:
        CalibrationError: The bag cannot be read, or it holds no chunk.
    """
    messages = read_bag(path, {topic: (CHUNK_TYPE,)}).of(topic)
    count = sum(one.message.horizon > 0 for one in messages)
    if count == 0:
        raise CalibrationError(f"bag {path}, topic {topic}: holds no chunk")
    episode = read_episode(path, layout, settings)
    replay = _Replay(policy, episode, planner or Planner.of(policy))
    for one in messages:
        replay.look(one)
        if on_progress is not None:
            on_progress(replay.chunks, count)
    differences = replay.differences
    mismatches = sum(not difference <= tolerance for difference in differences)
    greatest = max(differences, default=0.0)
    return Parity(count, replay.unmatched, replay.unknown, mismatches, greatest)


class _Replay:
    """Says again what a node said, message by message in the order of publishing."""

    def __init__(self, policy: ServedPolicy, episode: Episode, planner: Planner) -> None:
        self.chunks = self.unmatched = self.unknown = 0
        self.differences: list[float] = []
        self._policy, self._episode, self._planner = policy, episode, planner
        self._by_key = _index(episode)
        self._episode_id, self._next_seq, self._is_whole = -1, 0, True
        self._before: list[tuple[ActionChunk, int]] = []
        self._followed: ActionChunk | None = None

    def look(self, published: BagMessage) -> None:
        """Compare a chunk with what the replay makes of its inputs, or take note of a hold."""
        message = published.message
        if message.horizon == 0:  # it forgot all chunks before it
            self._begin(message.episode_id, message.seq + 1)
            return
        if message.episode_id != self._episode_id:
            self._begin(message.episode_id, 0)
        self.chunks += 1
        self._is_whole &= message.seq == self._next_seq
        self._next_seq = message.seq + 1
        self._compare(published)

    def _begin(self, episode_id: int, seq: int) -> None:
        self._episode_id, self._next_seq, self._is_whole = episode_id, seq, True
        self._before, self._followed = [], None

    def _compare(self, published: BagMessage) -> None:
        message = published.message
        taken_ns = stamp_to_ns(message.accepted_stamp)
        found = []
        sent = _sent(message, published.stamp_ns, self._policy.period_ns)
        for index in self._by_key.get((published.stamp_ns, message.instruction), []):
            said = self._policy.infer(self._episode.observations[index]).chunk
            planned = self._planner.plan(self._before, self._followed, said, taken_ns)
            found.append((_difference(planned, sent), said))
        self._followed = sent
        if not found:
            self.unmatched += 1
            self._is_whole = False
            return
        difference, said = min(found, key=lambda one: one[0])
        self._before.append((said, taken_ns))
        if self._is_whole or not self._planner.looks_back:
            self.differences.append(difference)
        else:
            self.unknown += 1


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


def _sent(message: Any, stamp_ns: int, period_ns: int) -> ActionChunk | None:
    """The chunk in a message; ``None`` if its numbers are not as many as it says."""
    if message.data.size != message.horizon * message.dim:
        return None
    rows = np.asarray(message.data, np.float32).reshape(message.horizon, message.dim)
    return ActionChunk(stamp_ns, period_ns, rows)


def _difference(planned: np.ndarray | None, sent: ActionChunk | None) -> float:
    if planned is None or sent is None or planned.shape != sent.actions.shape:
        return float("inf")
    return float(np.abs(planned - sent.actions).max())
