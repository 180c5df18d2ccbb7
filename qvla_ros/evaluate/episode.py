"""A recorded episode: what the robot sensed and did, read from a bag.

The observations of a bag are put together by the node's own ``FrameSync``, at the instants at
which the node would have had them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import overload

import numpy as np

from qvla_ros.errors import CalibrationError, ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_reader import BagContent, BagMessage, read_bag
from qvla_ros.observation import Observation
from qvla_ros.policy.frame_sync import (
    Frame,
    FrameSync,
    Sample,
    SyncSettings,
    UnusableSampleError,
    observe,
)
from qvla_ros.policy.pose_state import POSE, pose_sample, with_pose
from qvla_ros.sensor_messages import SECOND_NS, positions_by_name

MAX_CLOCK_DIFFERENCE_NS = 10 * SECOND_NS


class Observations(Sequence[Observation]):
    """Observations that are decoded when they are asked for, so that long bags fit into memory.

    Asking for one raises ``CalibrationError`` if its messages cannot be decoded.
    """

    def __init__(self, makers: Sequence[Callable[[], Observation]]) -> None:
        self._makers = tuple(makers)

    def __len__(self) -> int:
        """How many."""
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Observation: ...

    @overload
    def __getitem__(self, index: slice) -> "Observations": ...

    def __getitem__(self, index: int | slice) -> "Observation | Observations":
        """One observation, or some of them."""
        if isinstance(index, slice):
            return Observations(self._makers[index])
        return self._makers[index]()

    @classmethod
    def of_all(cls, sequences: Iterable[Sequence[Observation]]) -> "Observations":
        """All observations of several episodes, in order."""
        return cls([partial(one.__getitem__, i) for one in sequences for i in range(len(one))])


@dataclass(frozen=True, slots=True)
class RecordedActions:
    """What the robot was told, in the order of time.

    Attributes:
        stamps_ns: ``int64 [actions]``, rising.
        values: ``float32 [actions, action_dim]`` in robot units.
    """

    stamps_ns: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 2:
            raise ValueError(
                "actions must be float32 [actions, action_dim], "
                f"not {self.values.dtype} {list(self.values.shape)}"
            )
        if len(self.values) != len(self.stamps_ns):
            raise ValueError(f"{len(self.values)} actions, but {len(self.stamps_ns)} stamps")

    def at(self, times_ns: np.ndarray, within_ns: int) -> np.ndarray:
        """The action nearest to each instant.

        Args:
            times_ns: ``int64 [...]``.
            within_ns: One that is further away does not count.

        Returns:
            ``float32 [..., action_dim]``, NaN where there is none.
        """
        if len(self.stamps_ns) == 0:
            return np.full((*times_ns.shape, self.values.shape[1]), np.nan, np.float32)
        after = np.searchsorted(self.stamps_ns, times_ns).clip(0, len(self.stamps_ns) - 1)
        before = np.maximum(after - 1, 0)
        to_before = np.abs(times_ns - self.stamps_ns[before])
        to_after = np.abs(self.stamps_ns[after] - times_ns)
        nearest = np.where(to_before < to_after, before, after)
        close = np.minimum(to_before, to_after) <= within_ns
        return np.where(close[..., None], self.values[nearest], np.float32(np.nan))


@dataclass(frozen=True, slots=True)
class Episode:
    """One recording.

    Attributes:
        observations: In the order of time.
        paced_ns: ``int64 [observations]``, stamp of the first camera's image.
        ready_ns: ``int64 [observations]``, when the robot had each of them complete.
        actions: ``None`` if they were not recorded.
        metadata: Name, origin and remarks.
        drops: Samples and images that gave no observation, by reason.
        revoked_ns: When another instruction replaced the one before.
    """

    observations: Sequence[Observation]
    paced_ns: np.ndarray
    ready_ns: np.ndarray
    actions: RecordedActions | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    revoked_ns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.observations), len(self.paced_ns), len(self.ready_ns)}
        if len(lengths) > 1:
            raise ValueError(f"observations and their instants differ in number: {lengths}")

    @classmethod
    def in_step(
        cls,
        observations: Sequence[Observation],
        actions: np.ndarray | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Episode":
        """Observations that were complete at their stamps, each with its action.

        Args:
            observations: In the order of time.
            actions: ``float32 [observations, action_dim]`` in robot units, or ``None``.
            metadata: Name, origin and remarks.
        """
        stamps_ns = np.array([seen.stamp_ns for seen in observations], np.int64)
        recorded = None if actions is None else RecordedActions(stamps_ns, actions)
        return cls(observations, stamps_ns, stamps_ns, recorded, metadata or {})


def read_episode(path: Path, layout: BagLayout, settings: SyncSettings | None = None) -> Episode:
    """Read a rosbag2 folder (MCAP or SQLite); images are decoded when they are asked for.

    Args:
        path: The bag's folder.
        layout: What to read.
        settings: The node's limits in time; every image of the first camera is wanted, whatever
            the request interval.

    Raises:
        CalibrationError: The bag is missing, damaged, or lacks a topic or a name; or there is no
            observation in it. The message names the bag and the topic.
        ConfigurationError: ``rosbags`` is not installed.
    """
    optional = () if layout.action is None or layout.require_actions else (layout.action,)
    bag = read_bag(Path(path), layout.types, optional)
    if not layout.arrival_from_stamps:
        _check_clocks(bag, layout)
    synced = _synchronise(bag, layout, settings or SyncSettings())
    if not synced.frames:
        found = ", ".join(f"{reason} {count}" for reason, count in synced.sync.drops.items())
        raise CalibrationError(
            f"bag {path} gives no observation ({found}); if its cameras are further apart than "
            "on the robot, raise --max-skew-ms"
        )
    return Episode(
        observations=Observations([partial(_decode, bag, layout, one) for one in synced.frames]),
        paced_ns=np.array([one.anchor_ns for one in synced.frames], np.int64),
        ready_ns=np.array(synced.ready_ns, np.int64),
        actions=_actions(bag, layout),
        metadata={"name": Path(path).name, **bag.metadata},
        drops=synced.sync.drops,
        revoked_ns=tuple(synced.revoked_ns),
    )


@dataclass(slots=True)
class _Synced:
    """The frames of a bag, in the making."""

    sync: FrameSync
    frames: list[Frame] = field(default_factory=list)
    ready_ns: list[int] = field(default_factory=list)
    revoked_ns: list[int] = field(default_factory=list)

    def add(self, source: str, one: BagMessage, now_ns: int) -> None:
        try:
            sample = pose_sample(one.message) if source == POSE else _sample(one)
        except ValueError:
            self.sync.count("bad_message")
        else:
            self.sync.add(source, sample, now_ns)

    def take(self, now_ns: int) -> None:
        frame = self.sync.take(now_ns)
        if frame is not None:
            self.frames.append(with_pose(frame))
            self.ready_ns.append(now_ns)

    def wake_until(self, now_ns: int, end_ns: int) -> None:
        """Take what has waited long enough between two messages."""
        while (wake_ns := self.sync.wake_ns(now_ns)) is not None and wake_ns < end_ns:
            now_ns = wake_ns
            self.take(now_ns)


def _sample(one: BagMessage) -> Sample:
    return Sample(one.stamp_ns, one.message)


def _synchronise(bag: BagContent, layout: BagLayout, settings: SyncSettings) -> _Synced:
    anchor, *others = layout.sources.values()
    every_image = SyncSettings(
        settings.max_age_ns, settings.max_skew_ns, settings.wait_ns, settings.future_tolerance_ns
    )
    synced = _Synced(FrameSync(anchor, others, every_image))
    if layout.instruction_text is not None:
        synced.sync.instruct(layout.instruction_text, 0)
    before_ns = 0
    for now_ns, messages in groupby(_arrivals(bag, layout), key=lambda arrival: arrival[0]):
        synced.wake_until(before_ns, now_ns)
        for _, one in messages:
            if one.topic in layout.sources:
                synced.add(layout.sources[one.topic], one, now_ns)
            elif one.topic == layout.spoken and synced.sync.instruct(one.message.data, now_ns):
                synced.revoked_ns.append(now_ns)
        synced.take(now_ns)
        before_ns = now_ns
    synced.wake_until(before_ns, before_ns + settings.wait_ns + 1)
    return synced


def _arrivals(bag: BagContent, layout: BagLayout) -> list[tuple[int, BagMessage]]:
    """When each message came, in this order."""
    if not layout.arrival_from_stamps:
        return [(one.recorded_ns, one) for one in bag.messages]
    arrivals, now_ns = [], 0
    for one in bag.messages:
        # What has no stamp of its own came with what was recorded before it.
        now_ns = one.stamp_ns if one.topic in layout.sources else now_ns
        arrivals.append((now_ns, one))
    return sorted(arrivals, key=lambda arrival: arrival[0])


def _check_clocks(bag: BagContent, layout: BagLayout) -> None:
    for topic in layout.sources:
        late_ns = float(np.median([one.recorded_ns - one.stamp_ns for one in bag.of(topic)]))
        if abs(late_ns) > MAX_CLOCK_DIFFERENCE_NS:
            raise bag.error(
                topic,
                f"the stamps lie {late_ns / SECOND_NS:.0f} s before the time of recording; stamp "
                "with the recorder's clock (in simulation: use_sim_time), or read the bag with "
                "--arrival stamped",
            )


def _decode(bag: BagContent, layout: BagLayout, frame: Frame) -> Observation:
    try:
        return observe(frame, layout.orientation_of, layout.state_names)
    except UnusableSampleError as error:
        topics = {source: topic for topic, source in layout.sources.items()}
        topic = topics.get(error.source, layout.pose)  # a state that is a pose alone
        stamp_ns = frame.samples[error.source].stamp_ns
        raise bag.error(topic, f"the message of {stamp_ns} ns: {error}") from error


def _actions(bag: BagContent, layout: BagLayout) -> RecordedActions | None:
    if layout.action is None:
        return None
    by_stamp: dict[int, np.ndarray] = {}
    for one in bag.of(layout.action):
        # Commands are often sent without a stamp.
        stamp_ns = one.stamp_ns or one.recorded_ns
        try:
            by_stamp[stamp_ns] = positions_by_name(one.message, layout.action_names)
        except (ConfigurationError, ValueError) as error:
            raise bag.error(layout.action, f"the action of {stamp_ns} ns: {error}") from error
    if not by_stamp:
        return None
    stamps_ns = sorted(by_stamp)
    values = np.stack([by_stamp[stamp_ns] for stamp_ns in stamps_ns])
    return RecordedActions(np.array(stamps_ns, np.int64), values)
