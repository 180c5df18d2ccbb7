"""Packed layers of random codes, with the codes that they were made of."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from qvla_ros.checkpoint.packed_linear import PackedLinear


@dataclass(frozen=True)
class Example:
    """A packed layer and its fake-quantized weight, ``float32 [rows, columns]``."""

    packed: PackedLinear
    fake_quantized: torch.Tensor


ExampleMaker = Callable[[tuple[int, ...], int, int], Example]


@pytest.fixture(scope="session")
def make_example() -> ExampleMaker:
    """``make_example(bits of each row, columns, seed)``."""

    def make(row_bits: tuple[int, ...], columns: int, seed: int = 0) -> Example:
        generator = torch.Generator().manual_seed(seed)
        rows = len(row_bits)
        bits = torch.tensor(row_bits, dtype=torch.int64)
        codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
        codes &= (2 ** bits.clamp(max=8) - 1).to(torch.uint8)[:, None]
        scale = (torch.rand(rows, generator=generator) + 0.01).bfloat16()
        zero = (torch.randn(rows, generator=generator) * 3 + 2).bfloat16()
        weight = torch.randn(rows, columns, generator=generator).bfloat16()
        packed = PackedLinear.assemble("layer", columns, bits, codes, scale, zero, weight)
        fake = (codes.float() - zero.float()[:, None]) * scale.float()[:, None]
        fake = torch.where((bits == 16)[:, None], weight.float(), fake)
        return Example(packed, torch.where((bits == 0)[:, None], 0.0, fake))

    return make
