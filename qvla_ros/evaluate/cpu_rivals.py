"""PyTorch's own integer products on the CPU, where the PyTorch that is installed has them."""

from collections.abc import Callable, Iterator

import torch

_GROUP = 128
_NEEDS = {
    "torch_int8": ("_weight_int8pack_mm",),
    "torch_int4": ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu"),
    "torch_int_mm": ("_int_mm",),
}


def present_rivals() -> dict[str, str]:
    """Rival to ``"timed"``, or to why it is not."""
    return {
        name: "timed" if all(hasattr(torch, need) for need in needs) else "not in this PyTorch"
        for name, needs in _NEEDS.items()
    }


def rivals(
    x: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, Callable[[torch.Tensor], object]]]:
    """Name, packed weight, and the product of ``bfloat16 x`` with such a weight.

    Sizes that crash inside of PyTorch (2.13) instead of being refused are left out.
    ``torch_int8`` and ``torch_int4`` are weight-only; ``torch_int_mm`` has 8-bit inputs too, and
    neither rounding them nor applying scales is counted.
    """
    rows, columns = weight.shape
    present = {name for name, what in present_rivals().items() if what == "timed"}
    if "torch_int8" in present and columns % 16 == 0:
        scales = torch.ones(rows, dtype=torch.bfloat16)
        yield (
            "torch_int8",
            torch.randint(-127, 127, (rows, columns), dtype=torch.int8),
            lambda packed: torch._weight_int8pack_mm(x, packed, scales),
        )
    if "torch_int4" in present and columns % _GROUP == 0 and rows % 16 == 0:
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
        grid = torch.ones(columns // _GROUP, rows, 2, dtype=torch.bfloat16)
        yield (
            "torch_int4",
            torch._convert_weight_to_int4pack_for_cpu(codes, 1),
            lambda packed: torch._weight_int4pack_mm_for_cpu(x, packed, _GROUP, grid),
        )
    if "torch_int_mm" in present:
        rounded = torch.randint(-127, 127, x.shape, dtype=torch.int8)
        yield (
            "torch_int_mm",
            torch.randint(-127, 127, (rows, columns), dtype=torch.int8),
            lambda packed: torch._int_mm(rounded, packed.t()),
        )
