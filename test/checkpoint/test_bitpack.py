"""Packing against its definition, and unpacking against packing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvla_ros.checkpoint.bitpack import (
    CODE_BITS,
    pack_codes,
    packed_bytes_per_row,
    padded_columns,
    unpack_codes,
    unpack_into,
)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)


@given(
    bits=st.sampled_from(CODE_BITS),
    rows=st.integers(0, 5),
    columns=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
def test_unpacking_undoes_packing(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, packed_bytes_per_row(columns, bits))
    assert torch.equal(unpack_codes(packed, bits, columns), codes)


PLANES = {8: [(0, 8)], 4: [(0, 4)], 3: [(0, 2), (2, 1)], 2: [(0, 2)]}
"""Of each width: the lowest bit and the bits of every plane of a block."""


@pytest.mark.parametrize("bits", CODE_BITS)
def test_byte_j_of_a_plane_holds_columns_a_stride_apart_from_low_to_high_bits(bits: int) -> None:
    columns = 300
    codes = random_codes(2, columns, bits)
    padded = torch.zeros(2, 384, dtype=torch.uint8)
    padded[:, :columns] = codes
    expected = []
    for row in padded.tolist():
        for block in (row[:128], row[128:256], row[256:]):
            for low, width in PLANES[bits]:
                stride = 128 * width // 8
                for j in range(stride):
                    parts = [(code >> low) % 2**width for code in block[j::stride]]
                    expected.append(sum(part << (k * width) for k, part in enumerate(parts)))
    assert pack_codes(codes, bits).flatten().tolist() == expected


def test_a_block_of_3_bits_is_32_bytes_of_low_bits_and_16_of_high_ones() -> None:
    codes = torch.zeros(1, 128, dtype=torch.uint8)
    codes[0, 1] = 0b101
    packed = pack_codes(codes, 3)[0].tolist()
    assert len(packed) == 48
    assert {j: byte for j, byte in enumerate(packed) if byte} == {1: 0b01, 32 + 1: 0b1}


@pytest.mark.parametrize("bits", CODE_BITS)
def test_some_rows_are_unpacked_into_a_buffer_that_held_something_else(bits: int) -> None:
    codes = random_codes(5, 256, bits)
    buffer = torch.full((2, 256), 0xFF, dtype=torch.uint8)
    unpack_into(pack_codes(codes, bits)[1:3], bits, buffer)
    assert torch.equal(buffer, codes[1:3])


@pytest.mark.parametrize(("columns", "padded"), [(1, 128), (128, 128), (129, 256), (4304, 4352)])
def test_columns_are_padded_to_whole_blocks(columns: int, padded: int) -> None:
    assert padded_columns(columns) == padded
    assert packed_bytes_per_row(columns, 2) == padded // 4


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_code_that_does_not_fit_is_refused(bits: int) -> None:
    codes = torch.full((1, 3), 2**bits, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"does not fit {bits} bits"):
        pack_codes(codes, bits)


@pytest.mark.parametrize("bits", [0, 1, 5, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits"):
        pack_codes(torch.zeros(1, 1, dtype=torch.uint8), bits)


def test_packed_bytes_of_a_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="take 64 bytes a row, not 63"):
        unpack_codes(torch.zeros(1, 63, dtype=torch.uint8), 4, 100)
