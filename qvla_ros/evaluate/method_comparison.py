"""Every method at every budget of bytes, run by the deployed kernels on held-out frames.

All cells share one float model, one calibration set and one set of held-out frames. A finished
cell is a file, so an interrupted comparison goes on where it was; several processes may share the
cells of one folder.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from qvla_ros.errors import BudgetError, CalibrationError
from qvla_ros.evaluate.bootstrap import Blocks
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.heldout_answers import HeldoutAnswers, answer_batches
from qvla_ros.evaluate.method_cell import CellKey, MethodCell, read_cell
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.processing import Processing
from qvla_ros.policy.policy import Policy, PolicyIdentity, load_policy
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import CalibrationSet, calibration_set
from qvla_ros.quantize.file_size import CREATED_BY
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.pipeline import WrittenCheckpoint, write_quantized
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.rivals.contest import Contest, Method
from qvla_ros.quantize.rivals.registry import METHODS, REFERENCE
from qvla_ros.quantize.widths import WIDTHS

BLOCK_SECONDS = 1.0
"""Held-out frames nearer than this are not independent of each other."""

REFERENCE_BITS = 16.0
_SECOND_NS = 1_000_000_000
_RECORDED_BITS = 16.0  # the budget is bytes of file, held by the cell; the manifest names no other


@dataclass(frozen=True, slots=True)
class HeldoutFrames:
    """What nobody has calibrated on.

    Attributes:
        episodes: Frames of each episode.
        blocks: Of the same episodes, for the bootstrap.
    """

    episodes: tuple[CalibrationSet, ...]
    blocks: tuple[Blocks, ...]

    @property
    def batches(self) -> list[ModelInputs]:
        """All frames, in order."""
        return [batch for one in self.episodes for batch in one.batches()]

    @property
    def count(self) -> int:
        """Number of frames."""
        return sum(one.frames for one in self.blocks)

    @property
    def fingerprint(self) -> str:
        """Of all frames."""
        return "+".join(one.fingerprint for one in self.episodes)


def heldout_frames(
    episodes: Sequence[Episode], processing: Processing, frames: int
) -> HeldoutFrames:
    """About ``frames`` frames, as many of each episode, evenly spaced in it.

    Raises:
        CalibrationError: There are fewer frames than episodes.
    """
    if frames < len(episodes):
        raise CalibrationError(f"{frames} held-out frames of {len(episodes)} bags: ask for more")
    sets, blocks = [], []
    for episode in episodes:
        count = min(frames // len(episodes), len(episode.observations))
        sets.append(calibration_set(episode.observations, processing, count))
        seconds = float(np.ptp(episode.paced_ns)) / _SECOND_NS
        a_second = count / seconds if seconds > 0 else 1.0
        blocks.append(Blocks(count, max(1, round(BLOCK_SECONDS * a_second))))
    return HeldoutFrames(tuple(sets), tuple(blocks))


def cell_keys(
    methods: Sequence[str], budgets: Sequence[float], ablation_budgets: Sequence[float]
) -> list[CellKey]:
    """The cells of a comparison; the reference has one, ablations only some of the budgets."""
    keys = []
    for method in methods:
        if method == REFERENCE:
            keys.append(CellKey(method, REFERENCE_BITS))
            continue
        some = METHODS[method].ablation
        keys += [CellKey(method, bits) for bits in budgets if not some or bits in ablation_budgets]
    return keys


class MethodComparison:
    """The cells of one folder."""

    def __init__(
        self, contest: Contest, heldout: HeldoutFrames, folder: Path, keep_checkpoints: bool
    ) -> None:
        """Begin, or go on.

        Raises:
            ConfigurationError: The folder was begun with other inputs; the message says which.
        """
        table = contest.evidence.table("gauss-newton")
        self._contest, self._heldout, self._folder = contest, heldout, folder
        self._keep = keep_checkpoints
        self.purpose: dict[str, str | int | float] = {
            "version": CREATED_BY,
            "model": contest.model.fingerprint,
            "calibration frames": contest.calibration.fingerprint,
            "held-out frames": heldout.fingerprint,
            "probes": table.probes,
            "seed": table.seed,
        }
        Journal(folder / "cells", self.purpose)
        self._methods: dict[str, Method] = {}
        self._budgets: dict[float, int] = {}

    def cell(self, key: CellKey) -> MethodCell | None:
        """A finished cell, or ``None``."""
        path = self._path(key)
        return read_cell(path) if path.exists() else None

    def run(self, keys: Sequence[CellKey], on_cell: Callable[[MethodCell], None]) -> None:
        """Measure what is not measured yet; ``on_cell`` sees every cell of ``keys``."""
        for key in keys:
            cell = self.cell(key)
            if cell is None:
                cell = self._measured(key)
                cell.write(self._path(key))
            on_cell(cell)

    def _path(self, key: CellKey) -> Path:
        return self._folder / "cells" / f"{key.stem}.json"

    def _measured(self, key: CellKey) -> MethodCell:
        budget = 0
        if key.method != REFERENCE:
            budget = self._budgets.get(key.bits) or self._contest.budget_bytes(key.bits)
            self._budgets[key.bits] = budget
        if key.method not in self._methods:
            self._methods[key.method] = METHODS[key.method].make(self._contest)
        began = time.perf_counter()
        try:
            quantized = self._methods[key.method].quantize(budget)
        except BudgetError as error:
            return MethodCell(key.method, key.bits, budget, unmet=str(error))
        quantized_at = time.perf_counter()
        path = self._folder / f"{key.stem}.qvla.safetensors"
        limit = BitBudget(average_bits_per_weight=_RECORDED_BITS)
        written = write_quantized(self._contest.model, quantized, limit, path)
        if key.method != REFERENCE and written.file_bytes > budget:
            raise ValueError(f"{path} has {written.file_bytes} bytes, the budget is {budget}")
        answers, kernels = self._answers(path)
        seconds = (quantized_at - began, time.perf_counter() - quantized_at)
        if not self._keep:
            path.unlink()
        return self._cell(
            key, budget or written.file_bytes, (quantized, written), answers, kernels, seconds
        )

    def _cell(
        self,
        key: CellKey,
        budget: int,
        made: tuple[QuantizedModel, WrittenCheckpoint],
        answers: HeldoutAnswers,
        kernels: tuple[str, ...],
        seconds: tuple[float, float],
    ) -> MethodCell:
        quantized, written = made
        actions, expected = answers.actions, self._reference.actions
        error = actions.error_against(expected, self._contest.model.processing)
        frames = np.abs(actions.values - expected.values).mean(axis=(1, 2))
        bits = torch.cat([layer.row_bits for layer in quantized.layers.values()])
        return MethodCell(
            method=key.method,
            bits=key.bits,
            budget_bytes=budget,
            file_bytes=written.file_bytes,
            average_bits_per_weight=round(quantized.average_bits_per_weight, 5),
            rows_by_width={str(width): int((bits == width).sum()) for width in WIDTHS},
            group_scales=any(one.grid.scale.ndim == 2 for one in quantized.layers.values()),
            checkpoint_sha256=written.manifest.sha256,
            kernels=kernels,
            mean_l1=error.mean_l1,
            rms=error.rms,
            gripper_flips=error.gripper_flips,
            hidden_error=answers.hidden_error_against(self._reference),
            frame_errors=tuple(frames.tolist()),
            quantize_seconds=round(seconds[0], 2),
            evaluate_seconds=round(seconds[1], 2),
        )

    def _answers(self, path: Path) -> tuple[HeldoutAnswers, tuple[str, ...]]:
        policy = load_policy(path)
        dtype = policy.network.projector.fc1.weight.dtype
        names = {
            module.kernel_for(torch.empty(0, module.columns, dtype=dtype)).name
            for module in policy.network.modules()
            if isinstance(module, QuantizedLinear)
        }
        return answer_batches(policy, self._heldout.batches), tuple(sorted(names))

    @cached_property
    def _reference(self) -> HeldoutAnswers:
        model = self._contest.model
        identity = PolicyIdentity(model.model_id, model.fingerprint, "float32")
        policy = Policy(model.network, model.processing, identity)
        return answer_batches(policy, self._heldout.batches)
