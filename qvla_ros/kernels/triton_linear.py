"""One packed layer by the Triton kernels: where a network is not run by a plan of fused steps."""

from dataclasses import dataclass

import torch

from qvla_ros.kernels.fused_ops import (
    ALIGNMENT,
    Activation,
    FusedLinear,
    Gather,
    Tokens,
    sources,
)
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.triton_fused import activate, multiply


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """What goes before and after the product.

    Attributes:
        layer: What is multiplied.
        before: Picks the columns that are kept, pads, rounds; ``None`` if nothing is to be done.
        after: Puts the rows into order and adds the bias.
    """

    layer: FusedLinear
    before: Activation | None
    after: Activation


@torch.no_grad()
def linear_triton(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
    """``x · Wᵀ + bias`` in one launch for all widths (see `operand.Kernel`).

    The products of floats are of ``x``'s dtype, accumulated in float32.
    """
    steps = operand.prepared.get(__name__)
    if not isinstance(steps, _Steps):
        steps = operand.prepared[__name__] = _steps(operand)
    if not len(x):
        return x.new_empty(0, operand.packed.rows)
    x = x.contiguous()
    tokens = Tokens(x) if steps.before is None else activate(x, steps.before)
    return activate(multiply(tokens, steps.layer), steps.after).values


def _steps(operand: LinearOperand) -> _Steps:
    packed = operand.packed
    gather = Gather(sources(packed), operand.bias)
    rounds = packed.activation_bits == 8
    layer = FusedLinear((operand,), packed.stored_rows, gather, packed.input_columns, rounds)
    before = None
    if rounds or packed.input_columns is not None or packed.columns % ALIGNMENT:
        read = Gather.in_order(packed.columns, packed.row_order.device)
        read = read.columns(packed.input_columns).padded()
        before = Activation("identity", read, read, rounds)
    return _Steps(layer, before, Activation("identity", gather, gather, False))
