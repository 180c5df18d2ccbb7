"""Puts together what several sensors saw at one instant, when it is time to ask the policy again.

The node and the replay of bags both use it, so both choose the same frames. When in doubt it gives
nothing, and counts why.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import turned
from qvla_ros.observation import Observation
from qvla_ros.sensor_messages import image_to_rgb, positions_by_name

MILLISECOND_NS = 1_000_000
STATE = "state"
"""The name under which the robot state's samples are kept and counted."""


def camera_source(name: str) -> str:
    """The name under which a camera's samples are kept and counted."""
    return f"camera_{name}"


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """The limits in time, nanoseconds.

    Attributes:
        max_age_ns: A sample older than this is not used.
        max_skew_ns: How much older than the anchor another source's sample may be.
        wait_ns: How long an anchor waits for samples as new as itself.
        future_tolerance_ns: How far a stamp may lie after the clock.
        request_interval_ns: An anchor less than this after the last used one is passed over; see
            ``request_interval_ns``. 0 uses every anchor.
    """

    max_age_ns: int = 250 * MILLISECOND_NS
    max_skew_ns: int = 50 * MILLISECOND_NS
    wait_ns: int = 20 * MILLISECOND_NS
    future_tolerance_ns: int = 20 * MILLISECOND_NS
    request_interval_ns: int = 0


def request_interval_ns(horizon: int, period_ns: int, request_period_ns: int = 0) -> int:
    """The least time from one used anchor to the next.

    Args:
        horizon: Actions in a chunk.
        period_ns: Time between two actions.
        request_period_ns: As configured; 0 is half of the chunk's horizon.
    """
    # A quarter of a step of tolerance, lest a jitter of the stamps costs a whole frame.
    return max(0, (request_period_ns or horizon * period_ns // 2) - period_ns // 4)


@dataclass(slots=True)
class Pace:
    """When it is time to ask the policy again.

    Attributes:
        interval_ns: Least time from one used anchor to the next.
        due_ns: Anchors sensed before this are passed over.
    """

    interval_ns: int = 0
    due_ns: int = 0

    def is_due(self, anchor_ns: int) -> bool:
        """Whether an anchor sensed then is wanted."""
        return anchor_ns >= self.due_ns

    def used(self, anchor_ns: int) -> None:
        """Note that the policy was asked about an anchor."""
        self.due_ns = anchor_ns + max(1, self.interval_ns)


@dataclass(frozen=True, slots=True)
class Sample:
    """One message and when it was sensed, nanoseconds."""

    stamp_ns: int
    message: Any


@dataclass(frozen=True, slots=True)
class Frame:
    """One sample of each source, none later than the anchor, and the task.

    Attributes:
        anchor_ns: Stamp of the anchor's sample.
        samples: Source name to its sample.
        instruction: What the robot was asked to do when the frame was taken.
        instruction_ns: When it was asked.
    """

    anchor_ns: int
    samples: Mapping[str, Sample]
    instruction: str
    instruction_ns: int

    @property
    def stamp_ns(self) -> int:
        """When the oldest of the samples was sensed: the stamp of the ``Observation``."""
        return min(sample.stamp_ns for sample in self.samples.values())


class UnusableSampleError(ValueError):
    """A message that cannot be decoded.

    Attributes:
        source: Where it comes from.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(reason)
        self.source = source


def observe(
    frame: Frame, orientations: Mapping[str, str], state_names: Sequence[str]
) -> Observation:
    """Decode a frame whose samples are ROS messages under ``camera_source(name)`` and ``STATE``.

    Args:
        frame: Synchronous messages.
        orientations: Each camera, and how its images are turned (``image_codec.ORIENTATIONS``).
        state_names: What to pick from the ``JointState``, in the model's order; where there are
            none, the frame needs no state.

    Raises:
        UnusableSampleError: An encoding is not supported, a name is missing, a message
            contradicts itself, or a value is not finite.
    """
    images = {
        name: turned(_decoded(frame, camera_source(name), image_to_rgb), orientation)
        for name, orientation in orientations.items()
    }
    state = np.zeros(0, np.float32)
    if state_names:
        state = _decoded(frame, STATE, lambda message: positions_by_name(message, state_names))
    return Observation(frame.stamp_ns, images, state, frame.instruction)


def _decoded(frame: Frame, source: str, decode: Callable[[Any], np.ndarray]) -> np.ndarray:
    try:
        return decode(frame.samples[source].message)
    except (ConfigurationError, ValueError) as error:
        raise UnusableSampleError(source, str(error)) from error


class FrameSync:
    """Recent samples of each source, and the frames among them.

    Causal: beside the anchor's sample stands each other source's newest that is not later. It
    reads no clock; ``now_ns`` is on the clock of the stamps. Not thread safe.

    Args:
        anchor: The source that sets the pace, e.g. the first camera.
        others: The remaining sources.
        settings: The limits.
    """

    CAPACITY = 4096
    """Samples kept of one source, however fast it comes."""

    def __init__(self, anchor: str, others: Sequence[str], settings: SyncSettings) -> None:
        self.settings = settings
        self._anchor = anchor
        self._others = tuple(others)
        self._samples: dict[str, deque[Sample]] = {
            source: deque(maxlen=self.CAPACITY) for source in (anchor, *others)
        }
        self._instruction, self._instruction_ns = "", 0
        self._pace = Pace(settings.request_interval_ns)
        self._clock_ns: int | None = None
        self._counted_ns: int | None = None
        self._drops: Counter[str] = Counter()

    @property
    def drops(self) -> dict[str, int]:
        """Samples and anchors not used, by reason, since the object was made."""
        return dict(self._drops)

    @property
    def instruction(self) -> str:
        """What the robot is asked to do; empty if it was not told yet."""
        return self._instruction

    @property
    def instruction_ns(self) -> int:
        """When it was told, nanoseconds."""
        return self._instruction_ns

    def count(self, reason: str) -> None:
        """Count a drop for a reason outside of here, e.g. a message that cannot be decoded."""
        self._drops[reason] += 1

    def clear(self) -> None:
        """Forget all samples, and ask for a frame at once; the instruction stays."""
        for samples in self._samples.values():
            samples.clear()
        self._counted_ns = None
        self._pace.due_ns = 0

    def clock_jumped_back(self, now_ns: int) -> bool:
        """Whether the clock ran backwards since the last call; if so, all samples are forgotten."""
        before, self._clock_ns = self._clock_ns, now_ns
        jumped = before is not None and now_ns < before - self.settings.future_tolerance_ns
        if jumped:
            self._drops["clock_jumped_back"] += sum(map(len, self._samples.values()))
            self.clear()
        return jumped

    def waiting_for(self, now_ns: int) -> list[str]:
        """What is missing: sources without a sample that is fresh enough, and the instruction."""
        oldest = now_ns - self.settings.max_age_ns
        missing = [
            source
            for source, samples in self._samples.items()
            if not samples or samples[-1].stamp_ns < oldest
        ]
        return missing if self._instruction else [*missing, "instruction"]

    def instruct(self, text: str, now_ns: int) -> bool:
        """Take the instruction; if it is another one, a frame is asked for at once.

        Returns:
            Whether it replaces another one, so that all chunks are to be revoked.
        """
        if text == self._instruction:
            return False
        replaces = self._instruction != ""
        self._instruction, self._instruction_ns = text, now_ns
        self._pace.due_ns = 0
        return replaces

    def add(self, source: str, sample: Sample, now_ns: int) -> bool:
        """Keep a sample, or refuse it and count why.

        Returns:
            Whether it was kept.
        """
        reason = self._refusal(source, sample.stamp_ns, now_ns)
        if reason is not None:
            self._drops[reason] += 1
            return False
        samples = self._samples[source]
        samples.append(sample)
        oldest = now_ns - self.settings.max_age_ns - self.settings.max_skew_ns
        while samples[0].stamp_ns < oldest:
            samples.popleft()
        return True

    def take(self, now_ns: int) -> Frame | None:
        """The newest frame that is due, or nothing; the same frame only for a new instruction.

        An anchor is used when each other source has a sample as new as itself, so that nothing
        nearer can come, or when it has waited for ``wait_ns``.
        """
        for anchor in reversed(self._samples[self._anchor]):
            if not self._pace.is_due(anchor.stamp_ns):
                return None
            waited = now_ns - anchor.stamp_ns >= self.settings.wait_ns
            if not waited and not self._nothing_nearer_can_come(anchor.stamp_ns):
                continue
            found = self._match(anchor)
            if isinstance(found, str):
                self._count_once(anchor.stamp_ns, found)
            elif now_ns - found.stamp_ns > self.settings.max_age_ns:
                self._count_once(anchor.stamp_ns, "stale_observation")
            else:
                self._pace.due_ns = anchor.stamp_ns + 1
                return found
        return None

    def used(self, frame: Frame) -> None:
        """Tell that the policy was asked about ``frame``: the next one is due an interval later.

        A frame that could not be used delays nothing.
        """
        self._pace.used(frame.anchor_ns)

    def wake_ns(self, now_ns: int) -> int | None:
        """When a waiting anchor is used whatever comes; ``None`` if none waits."""
        ends = (
            anchor.stamp_ns + self.settings.wait_ns
            for anchor in self._samples[self._anchor]
            if self._pace.is_due(anchor.stamp_ns)
        )
        return min((end for end in ends if end > now_ns), default=None)

    def _refusal(self, source: str, stamp_ns: int, now_ns: int) -> str | None:
        samples = self._samples[source]
        if stamp_ns > now_ns + self.settings.future_tolerance_ns:
            return "future_stamp"
        if now_ns - stamp_ns > self.settings.max_age_ns:
            return "stale_observation"
        if samples and stamp_ns <= samples[-1].stamp_ns:
            return "out_of_order"
        return None

    def _nothing_nearer_can_come(self, anchor_ns: int) -> bool:
        newest = (self._samples[source] for source in self._others)
        return all(samples and samples[-1].stamp_ns >= anchor_ns for samples in newest)

    def _match(self, anchor: Sample) -> Frame | str:
        chosen = {self._anchor: anchor}
        for source in self._others:
            earlier = (s for s in reversed(self._samples[source]) if s.stamp_ns <= anchor.stamp_ns)
            sample = next(earlier, None)
            if sample is None:
                return f"missing_{source}"
            if anchor.stamp_ns - sample.stamp_ns > self.settings.max_skew_ns:
                return f"out_of_step_{source}"
            chosen[source] = sample
        if not self._instruction:
            return "missing_instruction"
        return Frame(anchor.stamp_ns, chosen, self._instruction, self._instruction_ns)

    def _count_once(self, anchor_ns: int, reason: str) -> None:
        # The same anchor is looked at again with every message that comes.
        if self._counted_ns is None or anchor_ns > self._counted_ns:
            self._counted_ns = anchor_ns
            self._drops[reason] += 1
