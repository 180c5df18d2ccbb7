"""Mixes of widths and forms of layers that every kernel is tried on."""

from dataclasses import dataclass

import pytest
import torch

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.operand import Kernel
from qvla_ros.kernels.selection import select_kernel

WIDTHS = (0, 2, 3, 4, 8, 16)
MIXES = {
    "all 0": (0,) * 9,
    "all 2": (2,) * 9,
    "all 3": (3,) * 9,
    "all 4": (4,) * 9,
    "all 8": (8,) * 9,
    "all 16": (16,) * 9,
    "one row": (4,),
    "one row of each": (2, 16, 0, 4, 8, 3),
    "mixed": (4, 0, 2, 16, 8, 3, 2, 16, 0, 8, 4, 3, 3, 0, 16, 8, 8, 4, 2, 2),
    "sorted": (16, 16, 8, 4, 4, 3, 2, 0),
}

FORMS = {
    "few columns": (5, False, 1),
    "a K tail": (300, False, 1),
    "groups": (300, True, 1),
    "removed columns": (300, False, 3),
    "groups and removed columns": (401, True, 2),
}
"""Columns, whether each group of them has its own scale, and the step of those that are kept."""

KERNELS = [
    (name, dtype)
    for name in ("reference", "cpu_chunked", "cpu_native")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    if name != "cpu_native" or dtype == torch.bfloat16
]
"""Every kernel for CPUs in every dtype in which it computes."""


def kernel_here(name: str, dtype: torch.dtype, activation_bits: int = 16) -> Kernel:
    """The kernel; the test is skipped if this machine has it not."""
    try:
        return select_kernel(torch.device("cpu"), dtype, name, activation_bits).function
    except ConfigurationError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Example:
    """A packed layer and its fake-quantized weight, ``float32 [rows, columns]``."""

    packed: PackedLinear
    fake_quantized: torch.Tensor


def make_layer(
    row_bits: tuple[int, ...],
    columns: int,
    seed: int = 0,
    groups: bool = False,
    step: int = 1,
    activation_bits: int = 16,
) -> Example:
    """A packed layer of random codes.

    With ``groups`` every 128 columns have their own scales; of ``step`` columns one is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(row_bits)
    input_columns = torch.arange(0, columns, step)
    kept = len(input_columns)
    bits = torch.tensor(row_bits, dtype=torch.int64)
    codes = torch.randint(0, 256, (rows, kept), dtype=torch.uint8, generator=generator)
    codes &= (2 ** bits.clamp(max=8) - 1).to(torch.uint8)[:, None]
    cells = (rows, -(-kept // 128) if groups else 1)
    scale = (torch.rand(cells, generator=generator) + 0.01).bfloat16()
    zero = (torch.randn(cells, generator=generator) * 3 + 2).bfloat16()
    weight = torch.randn(rows, kept, generator=generator).bfloat16()
    packed = PackedLinear.assemble(
        "layer",
        columns,
        bits,
        codes,
        scale if groups else scale[:, 0],
        zero if groups else zero[:, 0],
        weight,
        activation_bits=activation_bits,
        input_columns=input_columns,
    )
    cell = torch.arange(kept) // 128 if groups else torch.zeros(kept, dtype=torch.int64)
    fake = (codes.float() - zero.float()[:, cell]) * scale.float()[:, cell]
    fake = torch.where((bits == 16)[:, None], weight.float(), fake)
    full = torch.zeros(rows, columns)
    full[:, input_columns] = torch.where((bits == 0)[:, None], 0.0, fake)
    return Example(packed, full)
