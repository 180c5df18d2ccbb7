"""The multiple-choice knapsack: one width for every row, least summed score within one budget.

Three steps. On the lower convex hull of each row's (cost, score) points the Lagrangian solution
takes upgrades by falling benefit per cost until the budget is used up: the *base*. The price of
the first upgrade that does not fit, lambda, gives every other choice a reduced cost

    r = (score - base score) + lambda * (cost - base cost) >= 0,

and a solution with some budget left misses the lower bound by lambda * left + sum of its r. So
only choices with r below the best known miss can matter; a dynamic program over those rows,
smallest r first, tries them all, points off the hull included, and stops when no row with a
smaller r than the miss remains (Pisinger's minimal core). Then the answer is proven optimal.
"""

from dataclasses import dataclass

import numpy as np

from qvla_ros.errors import BudgetError

_WORK = 4_000_000  # states that the dynamic program may make before it gives up on the proof
_TRIES = 20_000  # upgrades tried on what the base leaves
_STATES = 60_000  # states kept after a row


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice for every row.

    Attributes:
        level: ``int64 [rows]`` index of the chosen width.
        score: Summed score.
        cost: Summed cost.
        gap: ``score`` minus a proven lower bound of every solution's score; 0 means optimal.
    """

    level: np.ndarray
    score: float
    cost: int
    gap: float


@dataclass(frozen=True, slots=True)
class _Upgrades:
    """Steps along the rows' convex hulls, best benefit per cost first.

    Attributes:
        row: ``int64 [n]`` index of the row.
        level: ``int64 [n]`` index of the width after the upgrade.
        gain: ``float64 [n]`` benefit per cost.
        total: ``int64 [n]`` cost of this upgrade and of all before it.
    """

    row: np.ndarray
    level: np.ndarray
    gain: np.ndarray
    total: np.ndarray


class Knapsack:
    """Rows, their choices, and the order of their upgrades; solved for one limit or for many.

    Args:
        scores: ``float64 [rows, widths]``; ``inf`` forbids a choice.
        cost: Non-negative ``int64 [rows, widths]``, in any order.

    Raises:
        BudgetError: A row has no choice at all.
    """

    def __init__(self, scores: np.ndarray, cost: np.ndarray) -> None:
        if not np.isfinite(scores).any(axis=1).all():
            row = int((~np.isfinite(scores).any(axis=1)).argmax())
            raise BudgetError(f"row {row} of the plan has no width that it may have")
        self._scores, self._cost = scores, cost
        self._start = _cheapest(scores, cost)
        self._start_cost = int(_picked(cost, self._start).sum())
        steps = cost - _picked(cost, self._start)[:, None]
        # Costs move in steps of this unit, so a remainder below it can never be used.
        self._unit = int(np.gcd.reduce(steps, axis=None)) or 1
        self._upgrades = _hull_upgrades(scores, cost, self._start)

    def solve(self, limit: int) -> Solution:
        """The least summed score at a summed cost of at most ``limit``.

        Raises:
            BudgetError: The cheapest choices cost more than the limit.
        """
        left = limit - self._start_cost
        if left < 0:
            raise BudgetError(
                f"the budget is too small by {-left} units even with every row at its cheapest "
                "allowed width"
            )
        upgrades = self._upgrades
        left -= left % self._unit
        taken = int(np.searchsorted(upgrades.total, left, side="right"))
        level = self._start.copy()
        # Of several upgrades of a row the last assignment stands, and that is the farthest.
        level[upgrades.row[:taken]] = upgrades.level[:taken]
        gap = 0.0
        if taken < len(upgrades.row):
            left -= int(upgrades.total[taken - 1]) if taken else 0
            core = _Core(self._scores, self._cost, level, float(upgrades.gain[taken]), left)
            level, miss = core.spend_rest(upgrades, taken)
            level, gap = _Search(core, level, miss).run()
        score, cost = (float(_picked(part, level).sum()) for part in (self._scores, self._cost))
        return Solution(level, score, int(cost), gap)


def _picked(table: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.take_along_axis(table, level[:, None], axis=1)[:, 0]


def _cheapest(scores: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The cheapest allowed choice of each row; among equals the one with the least score."""
    allowed = np.where(np.isfinite(scores), cost, np.iinfo(np.int64).max)
    least = allowed == allowed.min(axis=1, keepdims=True)
    return np.where(least, scores, np.inf).argmin(axis=1)


def _hull_upgrades(scores: np.ndarray, cost: np.ndarray, start: np.ndarray) -> _Upgrades:
    """All hull edges of all rows, by falling gain; ties by edge, then by row: results repeat."""
    current = start.copy()
    active = np.arange(len(scores))
    steepest = np.full(len(scores), np.inf)
    found = [(active[:0], active[:0], active[:0], steepest[:0])]
    while len(active):
        slope, spent = _slopes(scores[active], cost[active], current[active])
        top = slope.max(axis=1)
        # The steepest edge; among equals the farthest, so that no vertex lies inside an edge.
        best = np.where(slope == top[:, None], spent, -1).argmax(axis=1)
        useful = top > 0
        active, best, top, spent = active[useful], best[useful], top[useful], spent[useful]
        # Rounding must not put a row's later edge before its earlier one.
        steepest[active] = np.minimum(steepest[active], top)
        found.append((active, best, _picked(spent, best), steepest[active]))
        current[active] = best
    row, level, step, gain = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-gain, kind="stable")
    return _Upgrades(row[order], level[order], gain[order], np.cumsum(step[order]))


def _slopes(
    scores: np.ndarray, cost: np.ndarray, current: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Benefit per cost of each dearer choice (``-inf`` for the others), and the extra cost."""
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = _picked(scores, current)[:, None] - scores
        spent = cost - _picked(cost, current)[:, None]
        slope = saved / spent
    return np.where((spent > 0) & np.isfinite(scores), slope, -np.inf), spent


class _Core:
    """Every choice as a departure from the base solution.

    Attributes:
        base: ``int64 [rows]`` levels of the base.
        price: Score that one unit of cost is worth there.
        left: Budget that the base does not use.
        step: ``int64 [rows, widths]`` extra cost.
        rise: ``float64 [rows, widths]`` extra score.
        reduced: ``float64 [rows, widths]`` reduced cost, ``inf`` for staying.
    """

    def __init__(
        self, scores: np.ndarray, cost: np.ndarray, base: np.ndarray, price: float, left: int
    ) -> None:
        self.base, self.price, self.left = base, price, left
        self.step = cost - _picked(cost, base)[:, None]
        self.rise = scores - _picked(scores, base)[:, None]
        self.reduced = np.maximum(self.rise + price * self.step, 0.0)
        np.put_along_axis(self.reduced, base[:, None], np.inf, axis=1)

    def spend_rest(self, upgrades: _Upgrades, first: int) -> tuple[np.ndarray, float]:
        """The base plus the next upgrades that still fit, one a row, and what that misses."""
        level, left, miss = self.base.copy(), self.left, 0.0
        index = np.sort(np.unique(upgrades.row[first:], return_index=True)[1]) + first
        for row, target in zip(upgrades.row[index[:_TRIES]], upgrades.level[index], strict=False):
            step = int(self.step[row, target])
            if step <= left:
                level[row] = target
                left -= step
                miss += float(self.reduced[row, target])
        return level, miss + self.price * left

    def rates_ahead(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """After each of ``rows``: the best rates at which those behind it spend or save budget.

        Returns:
            ``[n]`` the most score per cost that an upgrade of a later row gains, and the least
            that a downgrade of a later row loses (``inf``: there is none).
        """
        step, rise = self.step[rows], self.rise[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = -rise / step
        gains = np.where((step > 0) & np.isfinite(rise), rate, 0.0).max(axis=1)
        losses = np.where((step < 0) & np.isfinite(rise), rate, np.inf).min(axis=1)
        best_gain = np.maximum.accumulate(np.append(gains[1:], 0.0)[::-1])[::-1]
        least_loss = np.minimum.accumulate(np.append(losses[1:], np.inf)[::-1])[::-1]
        return np.minimum(best_gain, self.price), np.maximum(least_loss, self.price)


class _Search:
    """Dynamic programming over the core's rows; a state is (extra cost, summed reduced cost).

    Args:
        core: Base solution and departures from it.
        level: The best solution so far.
        miss: Its score minus the lower bound.
    """

    def __init__(self, core: _Core, level: np.ndarray, miss: float) -> None:
        self._core, self._level, self._miss = core, level, miss
        nearest = core.reduced.min(axis=1)
        rows = np.flatnonzero(nearest < miss)
        # Ties in a scattered order, so that rows that spend and rows that save alternate.
        self._rows = rows[np.lexsort((rows * 2_654_435_761 % 2**32, nearest[rows]))]
        self._nearest = nearest[self._rows]
        self._trail: list[tuple[np.ndarray, np.ndarray]] = []  # a row's states: parent, level
        self._winner: tuple[int, int] | None = None  # row and state of the best solution
        self._dropped = np.inf  # the least bound of what was left unexplored

    def run(self) -> tuple[np.ndarray, float]:
        """The best levels found, and how far they may be from the optimum."""
        if not len(self._rows):
            return self._level, 0.0
        extra, reduced = np.zeros(1, np.int64), np.zeros(1)
        gains, losses = self._core.rates_ahead(self._rows)
        work = 0
        for index, row in enumerate(self._rows):
            if self._nearest[index] >= self._miss or not len(extra):
                break
            if work > _WORK:
                self._dropped = min(self._dropped, float(self._nearest[index]))
                break
            extra, reduced = self._branch(int(row), extra, reduced)
            work += len(extra)
            extra, reduced = self._prune(extra, reduced, gains[index], losses[index])
        return self._traced(), max(0.0, self._miss - self._dropped)

    def _branch(
        self, row: int, extra: np.ndarray, reduced: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every state with every choice of the row, dominated ones taken out."""
        core = self._core
        near = np.flatnonzero(core.reduced[row] < self._miss)
        levels = np.append(core.base[row], near)
        all_extra = (extra + np.append(0, core.step[row, near])[:, None]).ravel()
        all_reduced = (reduced + np.append(0.0, core.reduced[row, near])[:, None]).ravel()
        order = np.lexsort((all_reduced, all_extra))
        # A state that costs no less and scores no better than another one is of no use.
        score = all_reduced[order] - core.price * all_extra[order]
        order = order[score < np.minimum.accumulate(np.append(np.inf, score[:-1]))]
        parent, chosen = order % len(extra), levels[order // len(extra)]
        self._trail.append((parent.astype(np.int32), chosen.astype(np.int8)))
        return all_extra[order], all_reduced[order]

    def _prune(
        self, extra: np.ndarray, reduced: np.ndarray, gain: float, loss: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Note the best solution, and keep the states that may still lead to a better one."""
        price, left = self._core.price, self._core.left - extra
        miss = np.where(left >= 0, reduced + price * left, np.inf)
        best = int(miss.argmin())
        improved = miss[best] < self._miss
        self._miss = min(self._miss, float(miss[best]))
        # What is left can be spent at `gain` at best, what is overspent regained at `loss`.
        with np.errstate(invalid="ignore"):
            regained = np.where(left < 0, (loss - price) * -left, 0.0)
        bound = reduced + (price - gain) * np.maximum(left, 0) + regained
        kept = np.flatnonzero(bound < self._miss)
        if len(kept) > _STATES:  # those nearest to a full budget stay
            near = np.argsort((reduced + price * np.abs(left))[kept], kind="stable")
            self._dropped = min(self._dropped, float(bound[kept[near[_STATES:]]].min()))
            kept = np.sort(kept[near[:_STATES]])
        if improved:  # kept even where it leads no further, so that it can be traced
            kept = np.union1d(kept, best)
            self._winner = (len(self._trail) - 1, int(np.searchsorted(kept, best)))
        parent, chosen = self._trail[-1]
        self._trail[-1] = (parent[kept], chosen[kept])
        return extra[kept], reduced[kept]

    def _traced(self) -> np.ndarray:
        """The best solution: from its state back through the choices that led to it."""
        if self._winner is None:
            return self._level
        level = self._core.base.copy()
        last, state = self._winner
        for index in range(last, -1, -1):
            parent, chosen = self._trail[index]
            level[self._rows[index]] = chosen[state]
            state = int(parent[state])
        return level
