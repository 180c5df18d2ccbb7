"""Timing several things in turns, so that whatever disturbs the machine disturbs all of them.

One of the few places that read a clock.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, lead_in: int = 0
) -> dict[str, list[float]]:
    """Seconds of each of ``repeats`` runs by name, after one run of each that is not counted.

    The order is another one in each round: what runs before leaves its mark on the caches.

    Args:
        runs: What is timed.
        repeats: Rounds.
        lead_in: Runs of the same before each one that counts, as if it went on and on: its scratch
            memory is then in the caches, and not what the one before it left there.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    order = list(runs)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            for _ in range(lead_in):
                runs[name]()
            before = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def relative_speed(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """Median over the turns of the baseline's time over each one's: more than 1 is faster."""
    return {name: statistics.median(speeds) for name, speeds in _by_turn(seconds, baseline)}


def speed_interval(
    seconds: Mapping[str, Sequence[float]], baseline: str
) -> dict[str, tuple[float, float]]:
    """95 % intervals of what `relative_speed` answers (see `median_interval`)."""
    return {name: median_interval(speeds) for name, speeds in _by_turn(seconds, baseline)}


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two of the values the median is with at least 95 %, whatever they follow.

    The number of values below the true median is binomial. Fewer than six values are too few: then
    it is their range, and less sure.
    """
    ordered, count = sorted(values), len(values)
    below, tail = 0, 2.0**-count
    while tail <= 0.025 and below < (count - 1) // 2:
        below += 1
        tail += math.comb(count, below) * 2.0**-count
    below = max(0, below - 1)
    return ordered[below], ordered[count - 1 - below]


def _by_turn(
    seconds: Mapping[str, Sequence[float]], baseline: str
) -> Iterator[tuple[str, list[float]]]:
    """What was run, and its speed relative to the baseline in each turn."""
    for name, times in seconds.items():
        yield name, [b / s for b, s in zip(seconds[baseline], times, strict=True)]
