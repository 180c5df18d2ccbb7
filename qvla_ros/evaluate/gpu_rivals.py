"""Products with 4-bit weights of other libraries, each from a bf16 weight ``[rows, columns]``.

None of them is needed; one that is not installed, or refuses, is told so.
"""

from collections.abc import Callable
from functools import partial

import torch

Run = Callable[[], object]
Candidate = Callable[[torch.Tensor], Run]
"""``bfloat16 [tokens, columns]`` to one product with it; conversions of the input do not count."""

_GROUP = 128


def tinygemm(weight: torch.Tensor) -> Candidate:
    """PyTorch's own int4 product."""
    rows, columns = weight.shape
    codes = torch.randint(0, 16, weight.shape, dtype=torch.int32, device=weight.device)
    bytes_ = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(bytes_, 8)
    grid = torch.ones(columns // _GROUP, rows, 2, dtype=torch.bfloat16, device=weight.device)
    return lambda x: partial(torch.ops.aten._weight_int4pack_mm, x, packed, _GROUP, grid)


def gemlite(weight: torch.Tensor) -> Candidate:
    """GemLite, in float16, for which it is made."""
    from gemlite.core import DType, GemLiteLinear

    rows, columns = weight.shape
    layer = GemLiteLinear(
        4,
        group_size=_GROUP,
        in_features=columns,
        out_features=rows,
        input_dtype=DType.FP16,
        output_dtype=DType.FP16,
    )
    codes = torch.randint(0, 16, weight.shape, dtype=torch.uint8, device=weight.device)
    grid = torch.ones(rows * columns // _GROUP, 1, dtype=torch.float16, device=weight.device)
    layer.pack(codes, grid, 8 * grid, None)
    return lambda x: partial(layer, x.half())


def bitsandbytes(weight: torch.Tensor) -> Candidate:
    """NF4 of bitsandbytes."""
    from bitsandbytes import functional, matmul_4bit

    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    return lambda x: partial(matmul_4bit, x, packed.t(), quant_state=state)


def torchao(weight: torch.Tensor) -> Candidate:
    """Weights of int4 in torchao."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    rows, columns = weight.shape
    layer = torch.nn.Linear(columns, rows, bias=False, device=weight.device, dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize_(
        layer, Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    )
    return lambda x: partial(layer, x)


RIVALS: dict[str, Callable[[torch.Tensor], Candidate]] = {
    "tinygemm": tinygemm,
    "GemLite": gemlite,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
}
"""By the name in the table."""
