"""Intervals and tests of success rates, against tabulated and counted values."""

import pytest

from qvla_ros.evaluate.success_statistics import SuccessRate, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (39, 50, 0.648, 0.872),  # published beside a 78 % result
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_intervals_agree_with_tabulated_ones(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-3)


def test_a_wilson_interval_contains_the_rate_and_stays_within_zero_and_one():
    for episodes in range(1, 40):
        for successes in range(episodes + 1):
            low, high = wilson_interval(successes, episodes)
            assert 0 <= low <= successes / episodes <= high <= 1


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_an_impossible_rate_has_no_interval(successes, episodes):
    with pytest.raises(ValueError, match="successes of"):
        wilson_interval(successes, episodes)
    with pytest.raises(ValueError, match="is no rate"):
        SuccessRate(successes, episodes)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (0, 6, 2 / 64),
        (1, 5, 2 * 7 / 64),
        (8, 1, 2 * 10 / 512),
    ],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_differing_pairs(
    only_first, only_second, p_value
):
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar_exact(only_second, only_first) == pytest.approx(p_value)


def test_mcnemar_refuses_negative_numbers_of_pairs():
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 3)


def test_mcnemar_takes_more_pairs_than_a_float_can_count():
    assert 0 < mcnemar_exact(900, 1100) < 1e-4
