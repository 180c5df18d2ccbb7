"""Sorting rows by width, and the invariants of a packed layer."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qvla_ros.checkpoint.bitpack import unpack_codes
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.errors import CheckpointError


def assemble(
    row_bits: list[int],
    columns: int = 5,
    weight: torch.Tensor | None = None,
    scale: float = 0.5,
    **options: Any,
) -> PackedLinear:
    rows = len(row_bits)
    codes = torch.arange(rows, dtype=torch.uint8)[:, None].expand(rows, columns) % 4
    return PackedLinear.assemble(
        "layer",
        columns,
        torch.tensor(row_bits),
        codes,
        torch.full((rows,), scale).bfloat16(),
        torch.arange(rows).bfloat16(),
        torch.zeros(rows, columns) if weight is None else weight,
        **options,
    )


def test_rows_are_sorted_stably_by_width_and_0_bit_rows_take_nothing() -> None:
    row_bits = [2, 0, 16, 4, 2, 16, 8, 0, 3]
    layer = assemble(row_bits)
    assert [segment.bits for segment in layer.segments] == [16, 8, 4, 3, 2]
    assert layer.row_order.tolist() == [2, 5, 6, 3, 8, 0, 4]
    assert layer.stored_rows == 7
    assert layer.bits_per_row().tolist() == row_bits


def test_each_segment_holds_the_codes_scales_and_zeros_of_its_rows() -> None:
    layer = assemble([2, 4, 2, 4])
    fours, twos = layer.segments
    assert unpack_codes(fours.codes, 4, 5)[:, 0].tolist() == [1, 3]
    assert unpack_codes(twos.codes, 2, 5)[:, 0].tolist() == [0, 2]
    assert fours.zero is not None
    assert fours.zero.tolist() == [1.0, 3.0]


def test_bytes_count_codes_scales_zeros_and_the_row_order() -> None:
    layer = assemble([16, 8, 4, 3, 2, 0], columns=130)
    codes = 130 * 2 + 256 + 128 + 96 + 64
    assert layer.nbytes == codes + 4 * 2 * 2 + 5 * 4
    assert layer.bits_per_weight == 33 / 6


def test_a_layer_of_0_bit_rows_only_is_valid() -> None:
    layer = assemble([0, 0])
    assert layer.segments == ()
    assert layer.row_order.dtype == torch.int32
    assert layer.nbytes == 0


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot have \[5\] bits"):
        assemble([2, 5])


def test_a_16_bit_row_must_be_bfloat16_already() -> None:
    with pytest.raises(ValueError, match="bfloat16 cannot hold"):
        assemble([16], weight=torch.full((1, 5), 1 / 3))


def test_a_row_of_0_bits_may_have_any_scale() -> None:
    layer = assemble([0, 4])
    assert layer.stored_rows == 1


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_finite_and_positive(scale: float) -> None:
    with pytest.raises(CheckpointError, match=r"layer 'layer': segment4.scale\[0\]") as caught:
        assemble([4], scale=scale)
    assert caught.value.fault == CheckpointFault.SCALE


def test_a_16_bit_weight_must_be_finite() -> None:
    with pytest.raises(CheckpointError, match=r"segment16.weight") as caught:
        assemble([16], weight=torch.full((1, 5), float("inf")))
    assert caught.value.fault == CheckpointFault.WEIGHT


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 0, 1], "twice"),
        ([0, 2, 9], "outside"),
        ([0, 2, -1], "outside"),
        ([2, 0, 1], "ascend"),
    ],
)
def test_a_row_order_must_be_the_sorted_rows_of_each_width(order: list[int], message: str) -> None:
    layer = assemble([4, 2, 4])
    wrong = replace(layer, row_order=torch.tensor(order, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=message) as caught:
        wrong.validate()
    assert caught.value.fault == CheckpointFault.ROW_ORDER


def test_segments_out_of_order_are_refused() -> None:
    layer = assemble([4, 2])
    wrong = replace(layer, segments=layer.segments[::-1])
    with pytest.raises(CheckpointError, match="sorted") as caught:
        wrong.validate()
    assert caught.value.fault == CheckpointFault.LAYER_SPEC


def test_a_scale_of_another_dtype_is_refused() -> None:
    layer = assemble([4])
    segment = layer.segments[0]
    assert segment.scale is not None
    wrong = replace(layer, segments=(replace(segment, scale=segment.scale.float()),))
    with pytest.raises(CheckpointError, match=r"must be torch.bfloat16") as caught:
        wrong.validate()
    assert caught.value.fault == CheckpointFault.TENSOR_DTYPE


def with_groups(scale: torch.Tensor) -> PackedLinear:
    codes = torch.zeros(2, 130, dtype=torch.uint8)
    bits = torch.tensor([4, 3])
    return PackedLinear.assemble("layer", 130, bits, codes, scale, scale, torch.zeros(2, 130))


def test_a_layer_may_have_a_scale_for_each_group_of_128_columns() -> None:
    layer = with_groups(torch.tensor([[1, 2], [3, 4]]).bfloat16())
    assert [segment.group_columns for segment in layer.segments] == [128, 128]
    assert layer.segments[1].scale is not None
    assert layer.segments[1].scale.tolist() == [[3.0, 4.0]]
    assert layer.nbytes == 128 + 96 + 2 * 2 * 2 * 2 + 2 * 4


@pytest.mark.parametrize("shape", [(1,), (2, 1), (2, 3), (2, 130)])
def test_another_number_of_scales_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the shape \[2\], or both \[2, 2\]"):
        with_groups(torch.ones(shape).bfloat16())


def test_scales_of_rows_and_of_groups_do_not_mix() -> None:
    layer = with_groups(torch.ones(2, 2).bfloat16())
    ones = torch.ones(1).bfloat16()
    mixed = (layer.segments[0], replace(layer.segments[1], scale=ones, zero=ones))
    with pytest.raises(CheckpointError, match="whole rows and some of column groups") as caught:
        replace(layer, segments=mixed).validate()
    assert caught.value.fault == CheckpointFault.LAYER_SPEC


def keeping(input_columns: list[int], columns: int = 5) -> PackedLinear:
    kept = torch.tensor(input_columns)
    rows = 2
    return PackedLinear.assemble(
        "layer",
        columns,
        torch.tensor([4, 16]),
        torch.zeros(rows, len(kept), dtype=torch.uint8),
        torch.ones(rows).bfloat16(),
        torch.ones(rows).bfloat16(),
        torch.zeros(rows, len(kept)),
        input_columns=kept,
    )


def test_removed_columns_take_no_bytes() -> None:
    layer = keeping([0, 3])
    assert (layer.columns, layer.stored_columns) == (5, 2)
    assert layer.input_columns is not None
    assert layer.input_columns.dtype == torch.int32
    assert layer.nbytes == 64 + 2 * 2 + 2 * 2 + 2 * 4 + 2 * 4
    assert layer.bits_per_weight == (4 + 16) * 2 / (2 * 5)


def test_input_columns_that_are_all_columns_are_not_stored() -> None:
    assert keeping([0, 1, 2, 3, 4]).input_columns is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "keeps 0 of 5"),
        ([0, 1, 2, 3, 3], "keeps 5 of 5"),
        ([1, 1], "does not ascend"),
        ([3, 1], "does not ascend"),
        ([-1, 1], "outside"),
        ([1, 5], "outside"),
    ],
)
def test_input_columns_must_ascend_inside_the_layer(columns: list[int], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        keeping(columns)
    assert caught.value.fault == CheckpointFault.INPUT_COLUMNS


def test_activations_of_another_width_are_refused() -> None:
    assert assemble([4], activation_bits=8).activation_bits == 8
    with pytest.raises(CheckpointError, match="activations of 4 bits") as caught:
        assemble([4], activation_bits=4)
    assert caught.value.fault == CheckpointFault.LAYER_SPEC
