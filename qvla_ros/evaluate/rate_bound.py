"""How large a rate may be of which few or no events were seen."""

import math

CONFIDENCE = 0.95


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The greatest rate that independent trials do not rule out: Clopper and Pearson, one side.

    Without events it is ``1 - (1 - confidence) ** (1 / trials)``, about ``3 / trials`` at 95 %.

    Raises:
        ValueError: There are no trials, or more events than trials.
    """
    if not 0 <= events <= trials or trials == 0:
        raise ValueError(f"{events} events in {trials} trials bound no rate")
    if events == trials:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):  # halving an interval of doubles: beyond their precision
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def trials_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many trials without an event show that a rate is at most ``rate``.

    Raises:
        ValueError: ``rate`` is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"no number of trials bounds a rate by {rate}")
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def _at_most(events: int, trials: int, rate: float) -> float:
    """The probability of so few events."""
    return math.fsum(
        math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(events + 1)
    )
