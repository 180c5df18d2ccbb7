"""What is learnt about one layer in a gradient sweep: moments first, then scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.errors import CalibrationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.candidates import Candidates
from qvla_ros.quantize.gradient_sweep import LayerSlopes
from qvla_ros.quantize.widths import GRID_WIDTHS

ACTION_SHARE = 0.7
"""Share of the action-weighted second moment; the rest is unweighted, against overfitting."""


class InputMoments:
    """Second moments of a layer's inputs, plain and weighted by the action's slopes."""

    def __init__(self, layer: LinearLayer) -> None:
        """Begin with nothing seen."""
        shape = (layer.columns, layer.columns)
        self._layer = layer
        self._plain = torch.zeros(shape)
        self._weighted = torch.zeros(shape)
        self._tokens = 0

    def add(self, seen: LayerSlopes) -> None:
        """Take one batch and probe in."""
        tokens = seen.inputs.reshape(-1, self._layer.columns).float()
        weight = seen.slopes.reshape(len(tokens), -1).float().square().sum(1, keepdim=True)
        self._weighted.addmm_((tokens * weight).T, tokens)
        if seen.probe == 0:
            self._plain.addmm_(tokens.T, tokens)
            self._tokens += len(tokens)

    def finished(self) -> tuple[Tensor, Tensor]:
        """Both moments, in the memory of the sums: nothing can be added any more.

        Returns:
            ``E[x x^T]`` over tokens and frames, float32 ``[columns, columns]``; and the moment
            that rounding compensates under: that and the weighted one in their shares, each
            scaled to a mean diagonal of 1.

        Raises:
            CalibrationError: The layer never ran, its inputs are zero, or no gradient reached it.
        """
        name = self._layer.name
        if not self._tokens:
            raise CalibrationError(f"the layer {name!r} never ran on the calibration frames")
        plain, weighted = self._plain.div_(self._tokens), self._weighted
        size, slope = float(plain.diagonal().mean()), float(weighted.diagonal().mean())
        if not size > 0:
            raise CalibrationError(f"the inputs of the layer {name!r} are zero or not finite")
        if not slope > 0:
            raise CalibrationError(
                f"no gradient reached the layer {name!r}: every row would look free to prune"
            )
        weighted.mul_(ACTION_SHARE / slope).add_(plain, alpha=(1 - ACTION_SHARE) / size)
        return plain, weighted


@dataclass(frozen=True, slots=True, eq=False)
class LayerEvidence:
    """A finished layer.

    Attributes:
        layer: Which.
        moment: ``E[x x^T]``, float32 ``[columns, columns]``, not weighted.
        candidates: The rounded weight at every width.
        scores: float64 ``[rows, len(WIDTHS)]``.
        slope_energy: float64 ``[rows]``: mean over frames and probes of the squared norm of the
            action's gradient with respect to the row's outputs.
        token_weights: float32 ``[tokens]`` of all frames, frame after frame.
    """

    layer: LinearLayer
    moment: Tensor
    candidates: Candidates
    scores: Tensor
    slope_energy: Tensor
    token_weights: Tensor


class RowScores:
    """Accumulates the Gauss-Newton scores of one layer."""

    def __init__(self, layer: LinearLayer, candidates: Candidates) -> None:
        """Take the roundings whose steps are scored."""
        self._layer = layer
        self._candidates = candidates
        self._sums = torch.zeros(1 + len(GRID_WIDTHS), layer.rows, dtype=torch.float64)
        self._energy = torch.zeros(layer.rows, dtype=torch.float64)
        self._token_weights: dict[int, list[Tensor]] = {}
        self._samples = 0

    def add(self, seen: LayerSlopes) -> None:
        """Take one batch and probe in."""
        slopes, inputs = seen.slopes.float(), seen.inputs.float()
        for rows, steps in self._candidates.steps():
            for frame_slopes, frame_inputs in zip(slopes, inputs, strict=True):
                gradient = frame_slopes[:, rows].T @ frame_inputs  # of the rows, for this frame
                change = torch.einsum("rc,wrc->wr", gradient, steps)
                self._sums[:, rows] += change.double().square()
        squares = slopes.square()
        self._energy += squares.sum(dim=(0, 1)).double()
        self._token_weights.setdefault(seen.probe, []).append(squares.sum(2).flatten())
        self._samples += len(slopes)

    def scores(self) -> Tensor:
        """float64 ``[rows, widths + 1]``; the last column, 16 bits, is zero.

        Raises:
            CalibrationError: A score is not finite, or all are zero.
        """
        scores = (self._sums / self._samples).T
        name = self._layer.name
        if not torch.isfinite(scores).all():
            row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
            raise CalibrationError(f"the score of row {row} of {name!r} is not finite")
        if not scores.any():
            raise CalibrationError(
                f"no gradient reached the layer {name!r}: every row would look free to prune"
            )
        return torch.cat([scores, torch.zeros(len(scores), 1, dtype=torch.float64)], dim=1)

    def slope_energy(self) -> Tensor:
        """float64 ``[rows]``."""
        return self._energy / self._samples

    def token_weights(self) -> Tensor:
        """float32 ``[tokens]`` of all frames, frame after frame: mean over the probes."""
        by_probe = [torch.cat(batches) for batches in self._token_weights.values()]
        return torch.stack(by_probe).mean(0)
