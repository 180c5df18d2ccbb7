"""Sorting rows by width, and the invariants of a packed layer."""

from dataclasses import replace

import pytest
import torch

from qvla_ros.checkpoint.bitpack import unpack_codes
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.errors import CheckpointError


def assemble(
    row_bits: list[int], columns: int = 5, weight: torch.Tensor | None = None, scale: float = 0.5
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
    )


def test_rows_are_sorted_stably_by_width_and_0_bit_rows_take_nothing() -> None:
    layer = assemble([2, 0, 16, 4, 2, 16, 8, 0])
    assert [segment.bits for segment in layer.segments] == [16, 8, 4, 2]
    assert layer.row_order.tolist() == [2, 5, 6, 3, 0, 4]
    assert layer.stored_rows == 6
    assert layer.bits_per_row().tolist() == [2, 0, 16, 4, 2, 16, 8, 0]


def test_each_segment_holds_the_codes_scales_and_zeros_of_its_rows() -> None:
    layer = assemble([2, 4, 2, 4])
    fours, twos = layer.segments
    assert unpack_codes(fours.codes, 4, 5)[:, 0].tolist() == [1, 3]
    assert unpack_codes(twos.codes, 2, 5)[:, 0].tolist() == [0, 2]
    assert fours.zero is not None
    assert fours.zero.tolist() == [1.0, 3.0]


def test_bytes_count_codes_scales_zeros_and_the_row_order() -> None:
    layer = assemble([16, 8, 4, 2, 0], columns=130)
    codes = 130 * 2 + 256 + 128 + 64
    assert layer.nbytes == codes + 3 * 2 * 2 + 4 * 4
    assert layer.bits_per_weight == 6.0


def test_a_layer_of_0_bit_rows_only_is_valid() -> None:
    layer = assemble([0, 0])
    assert layer.segments == ()
    assert layer.row_order.dtype == torch.int32
    assert layer.nbytes == 0


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot have \[3\] bits"):
        assemble([2, 3])


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
