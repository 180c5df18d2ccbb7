"""Scales and codes of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.quantize.rounding import round_clipped, round_nearest

ROUNDINGS = {"nearest": round_nearest, "clipped": round_clipped}


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * torch.exp(0.8 * torch.randn(rows, columns, generator=generator))


def ones(weight: torch.Tensor) -> torch.Tensor:
    return torch.ones(weight.shape[1])


def relative_error(weight, rows):
    return ((rows.dequantize() - weight).square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_codes_fit_their_width_and_scales_are_positive(name, bits):
    rows = ROUNDINGS[name](heavy_tailed(16, 96), bits, torch.ones(96))
    assert rows.codes.dtype == torch.uint8
    assert int(rows.codes.max()) < 2**bits
    assert (rows.scale > 0).all()
    assert rows.scale.dtype == rows.zero.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_clip_search_is_never_worse_than_plain_rounding(bits):
    weight = heavy_tailed(32, 128)
    assert relative_error(weight, round_clipped(weight, bits, ones(weight))) <= relative_error(
        weight, round_nearest(weight, bits, ones(weight))
    )


def test_gaussian_rows_lose_what_theory_says_they_lose():
    weight = torch.randn(64, 2048, generator=torch.Generator().manual_seed(1))
    # Relative squared errors of optimally clipped uniform grids: about 0.119 and 0.0115.
    assert relative_error(weight, round_clipped(weight, 2, ones(weight))) == pytest.approx(
        0.119, rel=0.1
    )
    assert relative_error(weight, round_clipped(weight, 4, ones(weight))) == pytest.approx(
        0.0115, rel=0.1
    )


def test_a_row_of_one_sign_uses_all_levels():
    weight = torch.linspace(3.0, 6.0, 64)[None]
    rows = round_clipped(weight, 2, ones(weight))
    assert rows.codes.unique().tolist() == [0, 1, 2, 3]


@given(scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]), bits=st.sampled_from([2, 4, 8]))
@settings(max_examples=12, deadline=None)
def test_rounding_follows_the_size_of_the_weights(scale, bits):
    weight = heavy_tailed(4, 64)
    ratio = relative_error(
        weight * scale, round_clipped(weight * scale, bits, ones(weight))
    ) / relative_error(weight, round_clipped(weight, bits, ones(weight)))
    assert ratio == pytest.approx(1, rel=0.15)


def test_a_row_of_zeros_stays_zero():
    for rounding in ROUNDINGS.values():
        assert not rounding(torch.zeros(2, 8), 4, torch.ones(8)).dequantize().any()


def test_16_bits_have_no_grid():
    with pytest.raises(ValueError, match="16 bits"):
        round_clipped(torch.zeros(1, 1), 16, torch.ones(1))


def test_the_clip_search_protects_the_columns_with_large_inputs():
    weight = heavy_tailed(32, 128)
    energy = torch.ones(128)
    energy[5] = 1000.0
    weight[:, 5] = 3 * weight.abs().amax(1)
    for_all, for_inputs = (
        round_clipped(weight, 4, one).dequantize() - weight for one in (torch.ones(128), energy)
    )
    assert (for_inputs.square() @ energy).sum() < 0.7 * (for_all.square() @ energy).sum()
