"""Timing several things in turns, so that whatever disturbs the machine disturbs all of them.

One of the few places that read a clock.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each of ``repeats`` runs by name, after one run of each that is not counted.

    The order is another one in each round: what runs before leaves its mark on the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    order = list(runs)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            before = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def relative_speed(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """Median over the turns of the baseline's time over each one's: more than 1 is faster."""
    return {
        name: statistics.median(b / s for b, s in zip(seconds[baseline], times, strict=True))
        for name, times in seconds.items()
    }
