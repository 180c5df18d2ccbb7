"""The question that every method answers: the best codes within so many bytes of file."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from qvla_ros.errors import BudgetError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.registry import LoadedModel
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.pipeline import write_quantized
from qvla_ros.quantize.quantized_model import GROUP_COLUMNS, LayerCodes, QuantizedModel
from qvla_ros.quantize.rivals.evidence import GAUSS_NEWTON, Evidence
from qvla_ros.quantize.uniform import spread_plan

EVEN_WIDTHS = (2, 3, 4, 8)
"""Widths that methods without a sensitivity mix, two neighbours at a time."""

_ATTEMPTS = 10  # plans that are weighed
_WASTE = 0.0005  # share of the budget that may be left


class Method(Protocol):
    """One way to quantize."""

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """Codes whose checkpoint takes at most so many bytes.

        Raises:
            BudgetError: The method cannot make so small a file.
        """


@dataclass(frozen=True)
class Contest:
    """What all methods are given.

    Attributes:
        model: The float model.
        calibration: The only frames that a method may look at.
        evidence: What was measured on them.
        folder: For files that are only weighed.
    """

    model: LoadedModel
    calibration: CalibrationSet
    evidence: Evidence
    folder: Path

    @property
    def network(self) -> VlaNetwork:
        """The float network; methods leave it as it is."""
        return self.model.network

    @property
    def metric(self) -> ActionMetric:
        """All steps and dimensions alike."""
        config = self.network.config
        return ActionMetric.uniform(config.horizon, config.action_dim)

    @cached_property
    def layers(self) -> tuple[LinearLayer, ...]:
        """In execution order."""
        return tuple(self.network.linear_layers())

    def some_frames(self, count: int) -> CalibrationSet:
        """About so many calibration frames, evenly spaced, for what is measured edit by edit."""
        frames = self.calibration.frames
        chosen = frames[:: max(1, len(frames) // count)][:count]
        return CalibrationSet(chosen, f"{self.calibration.fingerprint}/{count}")

    def budget_bytes(self, average_bits: float) -> int:
        """The bytes of plain round-to-nearest at so many bits a weight: everybody's budget."""
        budget = BitBudget(average_bits_per_weight=average_bits)
        table = self.evidence.table(GAUSS_NEWTON)
        return self.file_bytes(spread_plan(table, budget, EVEN_WIDTHS))

    def spread(self, max_bytes: int, grouped: bool = False) -> BitPlan:
        """The two neighbouring widths that fill the budget, spread evenly over all rows.

        Raises:
            BudgetError: Even the narrowest width is too much.
        """
        table = self.evidence.table(GAUSS_NEWTON)
        groups = {layer.name: GROUP_COLUMNS for layer in self.layers} if grouped else {}

        def plan_of(row_bytes: int) -> BitPlan:
            budget = BitBudget(max_bytes=row_bytes)
            return spread_plan(table, budget, EVEN_WIDTHS, group_columns=groups)

        return self.fitted(max_bytes, plan_of, grouped)

    def fitted(
        self, max_bytes: int, plan_of: Callable[[int], BitPlan], grouped: bool = False
    ) -> BitPlan:
        """The plan whose *file*, header and all, is within the budget.

        Args:
            max_bytes: Of the file.
            plan_of: Maps the bytes that all rows may take to a plan.
            grouped: Whether grids are those of groups of columns.

        Raises:
            BudgetError: No plan fits.
        """
        best: BitPlan | None = None
        fits, breaks, aim = 0, max_bytes, max_bytes - self._fewest_other_bytes
        for _ in range(_ATTEMPTS):
            try:
                plan = plan_of(max(aim, 1))
            except BudgetError:  # too little for any plan, so more has to fit
                fits, aim = aim, (aim + breaks) // 2
                continue
            left = max_bytes - self.file_bytes(plan, grouped)
            if left < 0:
                breaks = aim
                aim = aim + left if best is None else (fits + breaks) // 2
                continue
            best, fits = plan, aim
            if left <= _WASTE * max_bytes:
                break
            aim = min(aim + left, (fits + breaks) // 2)
        if best is None:
            raise BudgetError(f"no plan of this method makes a file of at most {max_bytes} bytes")
        return best

    def file_bytes(self, plan: BitPlan, grouped: bool = False) -> int:
        """Size of a checkpoint by that plan: its shapes decide, not its codes."""
        path = self.folder / f"weighed-{secrets.token_hex(4)}.qvla.safetensors"
        try:
            # A limit in bits is not held against the file, only recorded.
            budget = BitBudget(average_bits_per_weight=16.0)
            written = write_quantized(self.model, _blank(plan, grouped), budget, path)
            return written.file_bytes
        finally:
            path.unlink(missing_ok=True)

    @cached_property
    def _fewest_other_bytes(self) -> int:
        """What a file with one width a layer takes beside its rows."""
        table = self.evidence.table(GAUSS_NEWTON)
        plan = spread_plan(table, BitBudget(average_bits_per_weight=2.0), EVEN_WIDTHS)
        rows = sum(one.packed.nbytes for one in _blank(plan, False).layers.values())
        return self.file_bytes(plan) - rows


def _blank(plan: BitPlan, grouped: bool) -> QuantizedModel:
    """A model of the plan's shapes, all codes zero."""
    layers = {}
    for layer in plan.layers:
        weight = torch.zeros(layer.rows, plan.stored_columns(layer), dtype=torch.bfloat16)
        codes = LayerCodes(layer, plan.row_bits[layer.name], weight, grouped)
        layers[layer.name] = codes.finished(
            plan.activation_bits.get(layer.name, 16), plan.input_columns.get(layer.name)
        )
    return QuantizedModel(layers)
