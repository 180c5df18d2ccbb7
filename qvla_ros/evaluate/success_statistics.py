"""How sure a success rate is, and whether two paired ones differ."""

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Successes among distinct episodes.

    Attributes:
        successes: Episodes that reached the goal.
        episodes: All episodes, at least one.
    """

    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.episodes or self.episodes == 0:
            raise ValueError(f"{self.successes} successes of {self.episodes} episodes is no rate")

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.successes}/{self.episodes} = {100 * self.rate:.1f} % "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % for a binomial share, within [0, 1].

    ``(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``

    Raises:
        ValueError: There are no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(f"{successes} successes of {episodes} episodes have no interval")
    share = successes / episodes
    spread = _Z_95**2 / episodes
    centre = share + spread / 2
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    # At 0 and at all successes the bound is exact, but for rounding.
    return (0.0 if successes == 0 else low, 1.0 if successes == episodes else high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's test in its exact, binomial form.

    Args:
        only_first: Pairs in which only the first policy succeeded.
        only_second: Pairs in which only the second policy succeeded.

    Returns:
        How probable a split at least as uneven is if both policies are equally good; 1 where no
        pair differs.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError("numbers of pairs cannot be negative")
    pairs = only_first + only_second
    tail = sum(math.comb(pairs, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, tail / 2 ** (pairs - 1)) if pairs else 1.0
