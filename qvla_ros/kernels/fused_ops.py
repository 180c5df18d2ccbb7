"""What a transformer block consists of when each elementwise step reads the product before it.

The steps exist twice, with the same names: in PyTorch (`fused_reference`), which is the oracle and
runs everywhere, and as Triton kernels (`triton_fused`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.kernels.operand import LinearOperand

NOTHING = -1
"""Source of a row of 0 bits: it is not in the product."""

ALIGNMENT = 16
"""Columns that a kernel would like to have a multiple of."""

Function = Literal["identity", "gelu", "swiglu"]


@dataclass(frozen=True, slots=True, eq=False)
class FusedLinear:
    """One or more packed layers over the same input, whose rows stay in stored order.

    Attributes:
        operands: Layers of one kind joined, in the order of their columns in the product; one
            launch each, and all of it one launch unless kinds differ.
        stored_rows: Columns of the product.
        gather: Finds all layers' rows after each other, in canonical order, in the product.
        input_columns: ``int32 [kept]``: the columns that the layers read; ``None`` if all.
        rounds_input: Whether a layer reads its input rounded to 8 bits.
    """

    operands: tuple[LinearOperand, ...]
    stored_rows: int
    gather: "Gather"
    input_columns: torch.Tensor | None
    rounds_input: bool


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The input of a `FusedLinear`.

    Attributes:
        values: ``[tokens, columns]``, the columns that the layer keeps, and perhaps zeros behind
            them (see `Gather.padded`).
        rounded: ``int8 [tokens, columns]`` if a layer reads integers, else ``None``.
        scale: ``float32 [tokens]``: ``values`` is about ``rounded * scale``.
        sums: ``float32 [tokens, 1 + blocks]``: the sum of the integers of a token, then those of
            each block of 128 columns.
    """

    values: torch.Tensor
    rounded: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    sums: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Where a step finds its values in the product before it.

    Attributes:
        source: ``int32 [columns]``: column of the product; -1 reads 0.
        bias: ``[columns]``, added to what was read; ``None`` if there is none.
    """

    source: torch.Tensor
    bias: torch.Tensor | None = None

    @classmethod
    def in_order(cls, columns: int, device: torch.device) -> "Gather":
        """Reads every column where it is."""
        return cls(torch.arange(columns, dtype=torch.int32, device=device))

    def columns(self, kept: torch.Tensor | None) -> "Gather":
        """Only these columns; all of them for ``None``."""
        if kept is None:
            return self
        index = kept.long()
        return Gather(self.source[index], None if self.bias is None else self.bias[index])

    def padded(self) -> "Gather":
        """With columns of nothing up to a multiple of ``ALIGNMENT``, for wide loads of them."""
        missing = -len(self.source) % ALIGNMENT
        bias = None if self.bias is None else pad(self.bias, (0, missing))
        return Gather(pad(self.source, (0, missing), value=NOTHING), bias)

    def rows(self, first: int, last: int) -> "Gather":
        """Only the columns ``first..last``."""
        bias = None if self.bias is None else self.bias[first:last].contiguous()
        return Gather(self.source[first:last].contiguous(), bias)


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """An elementwise function of a product, as the next layer wants to read it.

    Attributes:
        function: ``"swiglu"`` is ``silu(first) * second``.
        first: What is read.
        second: The other factor of ``"swiglu"``, else like ``first`` and not read.
        rounds: Whether the answer is also wanted in 8-bit integers.
    """

    function: Function
    first: Gather
    second: Gather
    rounds: bool


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """What is added to the residual stream: the product before, gathered and scaled.

    Attributes:
        gather: Where it is.
        factor: ``[columns]`` of a layer scale, or ``None``.
    """

    gather: Gather
    factor: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A normalisation over the columns.

    Attributes:
        weight: ``[columns]``.
        bias: ``[columns]`` of a LayerNorm; ``None`` for an RMSNorm, which does not centre.
        eps: Added to the variance.
        rounds: Whether the answer is also wanted in 8-bit integers.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    rounds: bool


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """How a product becomes attention heads with rotary positions.

    Attributes:
        gather: Of the rows of query, key and value.
        count: Heads of all three together.
        rotated: Heads of query and key together: the first ones.
        size: Numbers of a head.
    """

    gather: Gather
    count: int
    rotated: int
    size: int


@dataclass(frozen=True, slots=True)
class FusedOps:
    """One implementation of the steps.

    Attributes:
        name: For people.
        multiply: Tokens and layer to the product ``[tokens, stored rows]``.
        activate: Product and activation to tokens.
        add_norm: Residual ``[tokens, columns]``, product, branch and norm to the new residual and
            its normalised tokens.
        rotate: Product, heads, cosines and sines ``[length, size]`` to ``[tokens, count, size]``;
            tokens of several samples follow each other, ``length`` of each.
    """

    name: str
    multiply: Callable[[Tokens, FusedLinear], torch.Tensor]
    activate: Callable[[torch.Tensor, Activation], Tokens]
    add_norm: Callable[[torch.Tensor, torch.Tensor, Branch, Norm], tuple[torch.Tensor, Tokens]]
    rotate: Callable[[torch.Tensor, Heads, torch.Tensor, torch.Tensor], torch.Tensor]


def sources(packed: PackedLinear, first: int = 0) -> torch.Tensor:
    """The column of a product that holds each canonical row.

    Args:
        packed: The layer.
        first: Column of its first stored row.

    Returns:
        ``int32 [rows]``; ``NOTHING`` for rows of 0 bits.
    """
    order = packed.row_order.long()
    columns = torch.arange(first, first + len(order), dtype=torch.int32, device=order.device)
    source = torch.full((packed.rows,), NOTHING, dtype=torch.int32, device=order.device)
    source[order] = columns
    return source
