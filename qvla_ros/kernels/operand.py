"""What a kernel multiplies by: a packed weight, its bias, and the way back to canonical order."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from qvla_ros.checkpoint.packed_linear import PackedLinear


class PreparedState(dict[str, object]):
    """Belongs to one operand's tensors: a copy of the operand begins with none."""

    def __deepcopy__(self, memo: object) -> "PreparedState":
        """Nothing of it is copied."""
        return PreparedState()


@dataclass(frozen=True, slots=True, eq=False)
class LinearOperand:
    """A packed Linear, prepared for kernels.

    Attributes:
        packed: The weight.
        bias: ``[rows]`` in canonical order, or ``None``.
        order: ``int32 [rows]``: the stored rows' canonical rows, then those of the 0-bit rows.
        gather: ``int32 [rows]``: the inverse of ``order``.
        in_order: Whether ``order`` is the identity, so that nothing has to be gathered.
        prepared: What a kernel worked out at its first use, under the kernel's name.
    """

    packed: PackedLinear
    bias: torch.Tensor | None
    order: torch.Tensor
    gather: torch.Tensor
    in_order: bool
    prepared: PreparedState = field(default_factory=PreparedState)

    @classmethod
    def prepare(cls, packed: PackedLinear, bias: torch.Tensor | None = None) -> "LinearOperand":
        """Work out both orders.

        Raises:
            ValueError: The bias is not of the shape ``[rows]``.
        """
        if bias is not None and bias.shape != (packed.rows,):
            raise ValueError(
                f"{packed.name}: the bias must have the shape [{packed.rows}], "
                f"not {list(bias.shape)}"
            )
        dropped = torch.nonzero(packed.bits_per_row() == 0).flatten()
        order = torch.cat([packed.row_order, dropped.to(packed.row_order)])
        gather = torch.argsort(order).to(torch.int32)
        in_order = bool((order.diff() == 1).all())
        return cls(packed, bias, order, gather, in_order)

    def stored_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """The columns of ``x [batch, columns]`` that the stored weight multiplies."""
        kept = self.packed.input_columns
        return x if kept is None else x.index_select(1, kept)

    def to_canonical_order(self, y: torch.Tensor) -> torch.Tensor:
        """``[batch, rows]`` in stored order, 0-bit rows last, to canonical order."""
        if self.in_order:
            return y
        return torch.gather(y, 1, self.gather.long().expand(y.shape))


Kernel = Callable[[torch.Tensor, LinearOperand], torch.Tensor]
"""``x [batch, columns]`` and the operand to ``x · Wᵀ + bias``, ``[batch, rows]`` in x's dtype."""
