"""What allocation is asked for, and what it answers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qvla_ros.errors import BudgetError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


@dataclass(frozen=True, slots=True)
class BitBudget:
    """How much the quantized weights may take: one limit, or bytes and milliseconds together.

    Attributes:
        average_bits_per_weight: Mean width over all weights of all planned layers; codes only.
        max_bytes: Size of the whole checkpoint file: codes, scales, row orders, float tensors,
            header.
        max_latency_ms: Time of one inference by a measured latency table.
    """

    average_bits_per_weight: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if not self.to_json():
            raise BudgetError("give a budget: average bits, bytes or milliseconds")
        bits = self.average_bits_per_weight
        if bits is not None and len(self.to_json()) > 1:
            raise BudgetError("a budget of average bits cannot be combined with another one")
        if bits is not None and not 0 < bits <= max(WIDTHS):
            raise BudgetError(f"{bits} bits a weight: the budget must be above 0 and at most 16")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise BudgetError(f"{self.max_bytes} bytes: the budget must be positive")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < float("inf"):
            raise BudgetError(f"{self.max_latency_ms} ms: the budget must be positive and finite")

    def to_json(self) -> dict[str, float]:
        """The limits that are set, by name."""
        entries = {
            "average_bits_per_weight": self.average_bits_per_weight,
            "max_bytes": self.max_bytes,
            "max_latency_ms": self.max_latency_ms,
        }
        return {name: float(value) for name, value in entries.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BitPlan:
    """A bit width for every row.

    Attributes:
        layers: In execution order.
        row_bits: Layer name to ``uint8 [rows]``.
        token_weights: Layer name to float32 ``[tokens]``, see ``SensitivityTable``.
        budget: What the plan had to meet.
        predicted_error: Sum of the scores of the chosen widths.
        model_fingerprint: Of the model folder that the plan is for.
        calibration_fingerprint: Of the frames that were measured, and are needed to quantize.
        input_columns: Layer name to ``int32 [kept]``, ascending, of the layers that lose input
            columns because what feeds them is a 0-bit row.
        activation_bits: Layer name to 8, of the layers whose inputs are rounded to int8.
        optimality_gap: ``predicted_error`` minus a proven lower bound for every plan within the
            budget; 0 is proven optimal, NaN is not known.
    """

    layers: tuple[LinearLayer, ...]
    row_bits: dict[str, Tensor]
    token_weights: dict[str, Tensor]
    budget: BitBudget
    predicted_error: float
    model_fingerprint: str
    calibration_fingerprint: str
    input_columns: dict[str, Tensor] = field(default_factory=dict)
    activation_bits: dict[str, int] = field(default_factory=dict)
    optimality_gap: float = float("nan")

    @property
    def average_bits_per_weight(self) -> float:
        """Mean width over all weights; those of removed columns have no bits."""
        bits = sum(
            int(self.row_bits[one.name].sum(dtype=torch.int64)) * self.stored_columns(one)
            for one in self.layers
        )
        return bits / sum(layer.weights for layer in self.layers)

    def stored_columns(self, layer: LinearLayer) -> int:
        """Columns of a layer that are stored."""
        kept = self.input_columns.get(layer.name)
        return layer.columns if kept is None else len(kept)

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
        token_weights=table.token_weights,
        budget=BitBudget(average_bits_per_weight=float(bits)),
        predicted_error=float("nan"),
        model_fingerprint=table.model_fingerprint,
        calibration_fingerprint=table.calibration_fingerprint,
    )
