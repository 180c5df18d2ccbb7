"""Bounds of rates from few events."""

import math

import pytest

from qvla_ros.evaluate.rate_bound import trials_needed, upper_bound


def test_without_events_it_is_the_rule_of_three():
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)
    assert upper_bound(0, 300) == pytest.approx(3 / 300, rel=0.01)


def test_with_events_so_few_of_them_have_one_chance_in_twenty():
    bound = upper_bound(2, 20)
    chance = sum(math.comb(20, k) * bound**k * (1 - bound) ** (20 - k) for k in range(3))
    assert chance == pytest.approx(0.05, rel=1e-9)
    assert upper_bound(5, 5) == 1.0


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.05, 0.01])
def test_the_trials_that_are_needed_are_enough_and_one_less_is_not(rate):
    count = trials_needed(rate)
    assert upper_bound(0, count) <= rate < upper_bound(0, count - 1)


@pytest.mark.parametrize(("events", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_what_bounds_nothing_is_refused(events, trials):
    with pytest.raises(ValueError, match="bound no rate"):
        upper_bound(events, trials)
    with pytest.raises(ValueError, match="bounds a rate by 0"):
        trials_needed(0)
