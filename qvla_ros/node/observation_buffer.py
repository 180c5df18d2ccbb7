"""Puts together what several sensors saw at one instant; when in doubt, nothing."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """The limits in time, nanoseconds.

    Attributes:
        max_age_ns: A sample older than this is not used.
        max_skew_ns: How much older than the anchor another source's sample may be.
        wait_ns: How long an anchor waits for samples as new as itself.
        future_tolerance_ns: How far a stamp may lie after the clock.
    """

    max_age_ns: int
    max_skew_ns: int
    wait_ns: int
    future_tolerance_ns: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One message and when it was sensed, nanoseconds."""

    stamp_ns: int
    message: Any


@dataclass(frozen=True, slots=True)
class SyncedSamples:
    """One sample of each source, none later than the anchor.

    Attributes:
        anchor_ns: Stamp of the anchor's sample.
        samples: Source name to its sample.
    """

    anchor_ns: int
    samples: Mapping[str, Sample]

    @property
    def oldest_ns(self) -> int:
        """When the oldest of the samples was sensed, nanoseconds."""
        return min(sample.stamp_ns for sample in self.samples.values())


class ObservationBuffer:
    """Recent samples of each source, and the synchronous sets among them.

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
        self._clock_ns: int | None = None
        self._counted_ns: int | None = None
        self._drops: Counter[str] = Counter()

    @property
    def drops(self) -> dict[str, int]:
        """Samples and anchors not used, by reason, since the buffer was made."""
        return dict(self._drops)

    def count(self, reason: str) -> None:
        """Count a drop for a reason outside the buffer, e.g. a message that cannot be decoded."""
        self._drops[reason] += 1

    def clear(self) -> None:
        """Forget all samples."""
        for samples in self._samples.values():
            samples.clear()
        self._counted_ns = None

    def clock_jumped_back(self, now_ns: int) -> bool:
        """Whether the clock ran backwards since the last call; if so, all samples are forgotten."""
        before, self._clock_ns = self._clock_ns, now_ns
        jumped = before is not None and now_ns < before - self.settings.future_tolerance_ns
        if jumped:
            self._drops["clock_jumped_back"] += sum(map(len, self._samples.values()))
            self.clear()
        return jumped

    def waiting_for(self, now_ns: int) -> list[str]:
        """The sources without a sample that is fresh enough to be used."""
        oldest = now_ns - self.settings.max_age_ns
        return [
            source
            for source, samples in self._samples.items()
            if not samples or samples[-1].stamp_ns < oldest
        ]

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

    def take(self, now_ns: int, not_before_ns: int) -> SyncedSamples | None:
        """The newest synchronous set, or nothing.

        An anchor is used when each other source has a sample as new as itself, so that nothing
        nearer can come, or when it has waited for ``wait_ns``.

        Args:
            now_ns: The present.
            not_before_ns: Anchors sensed earlier than this are not wanted.
        """
        for anchor in reversed(self._samples[self._anchor]):
            if anchor.stamp_ns < not_before_ns:
                return None
            waited = now_ns - anchor.stamp_ns >= self.settings.wait_ns
            if not waited and not self._nothing_nearer_can_come(anchor.stamp_ns):
                continue
            found = self._match(anchor)
            if isinstance(found, str):
                self._count_once(anchor.stamp_ns, found)
            elif now_ns - found.oldest_ns > self.settings.max_age_ns:
                self._count_once(anchor.stamp_ns, "stale_observation")
            else:
                return found
        return None

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

    def _match(self, anchor: Sample) -> SyncedSamples | str:
        chosen = {self._anchor: anchor}
        for source in self._others:
            earlier = (s for s in reversed(self._samples[source]) if s.stamp_ns <= anchor.stamp_ns)
            sample = next(earlier, None)
            if sample is None:
                return f"missing_{source}"
            if anchor.stamp_ns - sample.stamp_ns > self.settings.max_skew_ns:
                return f"out_of_step_{source}"
            chosen[source] = sample
        return SyncedSamples(anchor.stamp_ns, chosen)

    def _count_once(self, anchor_ns: int, reason: str) -> None:
        # The same anchor is looked at again with every message that comes.
        if self._counted_ns is None or anchor_ns > self._counted_ns:
            self._counted_ns = anchor_ns
            self._drops[reason] += 1
