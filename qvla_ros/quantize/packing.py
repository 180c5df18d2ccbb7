"""Turn a float network and a bit plan into packed layers and the float tensors beside them."""

import torch
from torch import Tensor, nn

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.openvla_oft import OpenVlaOft
from qvla_ros.quantize.rounding import QuantizedRows, Rounding
from qvla_ros.quantize.widths import GRID_WIDTHS


def quantize_rows(
    weight: Tensor, row_bits: Tensor, rounding: Rounding, energy: Tensor
) -> QuantizedRows:
    """Round each row at its own width.

    Args:
        weight: Floating ``[rows, columns]``.
        row_bits: ``uint8 [rows]``; rows of 0 and 16 bits get codes that nobody reads.
        rounding: Of the rows of 2, 4 and 8 bits.
        energy: ``[columns]``, mean squares of the inputs.
    """
    rows, columns = weight.shape
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    scale = torch.ones(rows, dtype=torch.bfloat16)
    zero = torch.zeros(rows, dtype=torch.bfloat16)
    for bits in GRID_WIDTHS:
        index = torch.nonzero(row_bits == bits).flatten()
        if len(index):
            part = rounding(weight[index], bits, energy)
            codes[index], scale[index], zero[index] = part.codes, part.scale, part.zero
    return QuantizedRows(codes, scale, zero)


def fake_quantize(weight: Tensor, row_bits: Tensor, rounding: Rounding, energy: Tensor) -> Tensor:
    """The weight that a packed layer stands for, float32 ``[rows, columns]``.

    Derived from the same codes and scales as the packed layer: equal to it bit for bit.
    """
    values = quantize_rows(weight, row_bits, rounding, energy).dequantize()
    values[row_bits == 0] = 0.0
    kept = row_bits == 16
    values[kept] = weight[kept].to(torch.bfloat16).float()
    return values


def pack_layer(
    layer: LinearLayer, weight: Tensor, row_bits: Tensor, rounding: Rounding, energy: Tensor
) -> PackedLinear:
    """Quantize and pack one weight matrix ``[rows, columns]``."""
    rows = quantize_rows(weight, row_bits, rounding, energy)
    return PackedLinear.assemble(
        name=layer.name,
        columns=layer.columns,
        row_bits=row_bits,
        codes=rows.codes,
        scale=rows.scale,
        zero=rows.zero,
        weight=weight.to(torch.bfloat16),
    )


def float_tensors(network: OpenVlaOft, layers: tuple[LinearLayer, ...]) -> dict[str, Tensor]:
    """Every parameter that is not packed, as BF16 wherever that loses nothing."""
    packed = {f"{layer.name}.weight" for layer in layers}
    return {
        name: _smallest(parameter.detach())
        for name, parameter in network.named_parameters()
        if name not in packed
    }


def _smallest(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def linear_weight(network: OpenVlaOft, layer: LinearLayer) -> Tensor:
    """The float weight of a layer, ``[rows, columns]``."""
    module = network.get_submodule(layer.name)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{layer.name} is not a float Linear")
    return module.weight.detach()
