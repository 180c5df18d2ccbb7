"""What allocation is asked for, and what it answers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.errors import BudgetError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


@dataclass(frozen=True, slots=True)
class BitBudget:
    """How much the quantized weights may take: exactly one of the two limits.

    Attributes:
        average_bits_per_weight: Mean width over all weights of all planned layers; codes only.
        max_bytes: Size of the whole checkpoint file: codes, scales, row orders, float tensors,
            header.
    """

    average_bits_per_weight: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.average_bits_per_weight is None) == (self.max_bytes is None):
            raise BudgetError("give either an average number of bits or a number of bytes")
        bits = self.average_bits_per_weight
        if bits is not None and not 0 < bits <= max(WIDTHS):
            raise BudgetError(f"{bits} bits a weight: the budget must be above 0 and at most 16")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise BudgetError(f"{self.max_bytes} bytes: the budget must be positive")

    def to_json(self) -> dict[str, float]:
        """The limit that is set, by name."""
        entries = {
            "average_bits_per_weight": self.average_bits_per_weight,
            "max_bytes": self.max_bytes,
        }
        return {name: float(value) for name, value in entries.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BitPlan:
    """A bit width for every row.

    Attributes:
        layers: In execution order.
        row_bits: Layer name to ``uint8 [rows]``.
        input_energy: Layer name to float32 ``[columns]``: what the rounding of rows needs.
        budget: What the plan had to meet.
        predicted_error: Sum of the scores of the chosen widths.
        model_fingerprint: Of the model folder that the plan is for.
    """

    layers: tuple[LinearLayer, ...]
    row_bits: dict[str, Tensor]
    input_energy: dict[str, Tensor]
    budget: BitBudget
    predicted_error: float
    model_fingerprint: str

    @property
    def average_bits_per_weight(self) -> float:
        """Mean width over all weights."""
        bits = sum(int(self.row_bits[one.name].sum()) * one.columns for one in self.layers)
        return bits / sum(layer.weights for layer in self.layers)

    @property
    def bit_histogram(self) -> dict[int, int]:
        """Rows of each width."""
        rows = torch.cat([self.row_bits[layer.name] for layer in self.layers])
        return {bits: int((rows == bits).sum()) for bits in WIDTHS}


def uniform_plan(table: SensitivityTable, bits: int) -> BitPlan:
    """Every row at the same width: what round-to-nearest baselines use."""
    if bits not in WIDTHS:
        raise BudgetError(f"{bits} is not a bit width: use one of {WIDTHS}")
    return BitPlan(
        layers=table.layers,
        row_bits={
            layer.name: torch.full((layer.rows,), bits, dtype=torch.uint8)
            for layer in table.layers
        },
        input_energy=table.input_energy,
        budget=BitBudget(average_bits_per_weight=float(bits)),
        predicted_error=float("nan"),
        model_fingerprint=table.model_fingerprint,
    )
