"""Compensated rounding against the error it promises to lower, and against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.errors import CalibrationError
from qvla_ros.quantize.compensation import Compensator
from qvla_ros.quantize.rounding import (
    clipped_grid,
    codes_on,
    in_groups,
    nearest_grid,
    range_grid,
    values_of,
)


def correlated(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs whose columns are mixtures of fewer sources, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(tokens, columns // 3 + 1, generator=generator)
    mixture = torch.randn(columns // 3 + 1, columns, generator=generator)
    return sources @ mixture + 0.1 * torch.randn(tokens, columns, generator=generator)


def output_errors(weight, values, inputs):
    return ((values - weight) @ inputs.T).square().mean(1)


@given(bits=st.sampled_from([2, 3, 4]), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_compensation_lowers_the_output_error(bits, seed):
    inputs = correlated(400, 150, seed)
    weight = torch.randn(24, 150, generator=torch.Generator().manual_seed(seed))
    moment = inputs.T @ inputs / 400
    grid = clipped_grid(weight, bits, moment.diagonal())
    plain = values_of(codes_on(weight, grid, bits), grid)
    better = values_of(Compensator(moment).round(weight, grid, bits), grid)
    before, after = (output_errors(weight, one, inputs).sum() for one in (plain, better))
    assert after < 0.5 * before


def test_uncorrelated_inputs_leave_nothing_to_compensate():
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    grid = range_grid(weight, 3, torch.ones(40))
    codes = Compensator(torch.diag(torch.rand(40) + 0.5)).round(weight, grid, 3)
    assert codes.equal(codes_on(weight, grid, 3))


def test_two_columns_are_rounded_as_worked_out_by_hand():
    """With the first column rounded, the second takes over h01 / h11 of its error."""
    moment = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([[0.4, 0.3]])
    grid = nearest_grid(torch.tensor([[7.0, 7.0]]), 4, torch.ones(2))  # whole numbers
    codes = Compensator(moment, damping=0.0).round(weight, grid, 4)
    # 0.4 -> 0; the second becomes 0.3 + 0.4 * (1 / 1) = 0.7 -> 1.
    assert values_of(codes, grid).tolist() == [[0.0, 1.0]]


def test_rows_do_not_depend_on_each_other():
    inputs = correlated(300, 140)
    moment = inputs.T @ inputs
    weight = torch.randn(6, 140, generator=torch.Generator().manual_seed(1))
    grid = clipped_grid(weight, 3, moment.diagonal())
    together = Compensator(moment).round(weight, grid, 3)
    alone = clipped_grid(weight[2:3], 3, moment.diagonal())
    assert together[2:3].equal(Compensator(moment).round(weight[2:3], alone, 3))


def test_grids_of_groups_are_used():
    inputs = correlated(300, 172)
    moment = inputs.T @ inputs
    weight = torch.randn(4, 172, generator=torch.Generator().manual_seed(1))
    weight[:, 128:] *= 100
    grid = in_groups(clipped_grid, weight, 4, moment.diagonal(), 128)
    values = values_of(Compensator(moment).round(weight, grid, 4, 128), grid, 128)
    plain = values_of(codes_on(weight, grid, 4, 128), grid, 128)
    before, after = (output_errors(weight, one, inputs).sum() for one in (plain, values))
    assert after < before


@pytest.mark.parametrize("moment", [torch.zeros(3, 3), torch.full((3, 3), torch.nan)])
def test_a_moment_without_information_is_refused(moment):
    with pytest.raises(CalibrationError, match="zero or not finite"):
        Compensator(moment)
