"""Grids and codes of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.quantize.rounding import (
    clipped_grid,
    codes_on,
    in_groups,
    nearest_grid,
    range_grid,
    values_of,
)
from qvla_ros.quantize.widths import GRID_WIDTHS

SEARCHES = {"nearest": nearest_grid, "range": range_grid, "clipped": clipped_grid}


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * torch.exp(0.8 * torch.randn(rows, columns, generator=generator))


def rounded(search, weight, bits, energy=None):
    grid = search(weight, bits, torch.ones(weight.shape[1]) if energy is None else energy)
    return values_of(codes_on(weight, grid, bits), grid)


def relative_error(search, weight, bits):
    error = rounded(search, weight, bits) - weight
    return (error.square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("bits", GRID_WIDTHS)
@pytest.mark.parametrize("name", SEARCHES)
def test_codes_fit_their_width_and_scales_are_positive(name, bits):
    weight = heavy_tailed(16, 96)
    grid = SEARCHES[name](weight, bits, torch.ones(96))
    codes = codes_on(weight, grid, bits)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    assert (grid.scale > 0).all()
    assert grid.scale.dtype == grid.zero.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", GRID_WIDTHS)
@pytest.mark.parametrize("rival", ["nearest", "range"])
def test_the_clip_search_is_never_worse_than_plain_ranges(rival, bits):
    weight = heavy_tailed(32, 128)
    ours, plain = (relative_error(one, weight, bits) for one in (clipped_grid, SEARCHES[rival]))
    assert ours <= plain


def test_gaussian_rows_lose_what_theory_says_they_lose():
    weight = torch.randn(64, 2048, generator=torch.Generator().manual_seed(1))
    # Relative squared errors of optimally clipped uniform grids: about 0.119, 0.0374 and 0.0115.
    for bits, expected in ((2, 0.119), (3, 0.0374), (4, 0.0115)):
        assert relative_error(clipped_grid, weight, bits) == pytest.approx(expected, rel=0.1)


def test_a_row_of_one_sign_uses_all_levels():
    weight = torch.linspace(3.0, 6.0, 64)[None]
    grid = clipped_grid(weight, 2, torch.ones(64))
    assert codes_on(weight, grid, 2).unique().tolist() == [0, 1, 2, 3]


def test_a_range_holds_zero():
    weight = torch.tensor([[3.0, 4.0], [-4.0, -3.0]])
    grid = range_grid(weight, 4, torch.ones(2))
    ends = values_of(torch.tensor([[0, 15], [0, 15]]), grid)
    torch.testing.assert_close(ends, torch.tensor([[0.0, 4.0], [-4.0, 0.0]]), rtol=0.02, atol=0.02)


@given(scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]), bits=st.sampled_from(GRID_WIDTHS))
@settings(max_examples=12, deadline=None)
def test_rounding_follows_the_size_of_the_weights(scale, bits):
    weight = heavy_tailed(4, 64)
    scaled, plain = (relative_error(clipped_grid, one, bits) for one in (weight * scale, weight))
    assert scaled / plain == pytest.approx(1, rel=0.15)


def test_a_row_of_zeros_stays_zero():
    for search in SEARCHES.values():
        assert not rounded(search, torch.zeros(2, 8), 4).any()


def test_16_bits_have_no_grid():
    with pytest.raises(ValueError, match="16 bits"):
        clipped_grid(torch.zeros(1, 1), 16, torch.ones(1))


def test_the_clip_search_protects_the_columns_with_large_inputs():
    weight = heavy_tailed(32, 128)
    energy = torch.ones(128)
    energy[5] = 1000.0
    weight[:, 5] = 3 * weight.abs().amax(1)
    for_all, for_inputs = (
        rounded(clipped_grid, weight, 4, one) - weight for one in (torch.ones(128), energy)
    )
    assert (for_inputs.square() @ energy).sum() < 0.7 * (for_all.square() @ energy).sum()


def test_groups_have_grids_of_their_own():
    weight = torch.cat([torch.full((2, 128), 0.01), torch.linspace(-9, 9, 44).expand(2, 44)], 1)
    weight[:, :64] *= -1
    grid = in_groups(nearest_grid, weight, 4, torch.ones(172), 128)
    assert grid.scale.shape == (2, 2)
    values = values_of(codes_on(weight, grid, 4, 128), grid, 128)
    torch.testing.assert_close(values[:, :128], weight[:, :128], rtol=0.01, atol=0)
    assert (values - weight).abs().max() <= 9 / 7 / 2 * 1.01
