"""How far the inputs of a layer drift when the layers in front of it are quantized."""

import torch
from torch import Tensor

from qvla_ros.quantize.compensation import Compensator


class Drift:
    """Sums over tokens of one layer, with float inputs x and quantized inputs y.

    Attributes:
        moment: Weighted sum of ``y y^T`` over the kept columns, float32 ``[stored, stored]``.
        exact_mean: Weighted sum of x, ``[columns]``.
        mean: Weighted sum of y over the kept columns, ``[stored]``.
    """

    def __init__(self, weight: Tensor, kept: Tensor | None, tokens: int) -> None:
        """Begin with nothing seen.

        Args:
            weight: Of the layer, float32 ``[rows, columns]``.
            kept: The columns that stay, or ``None`` for all.
            tokens: How many will be seen; where they are fewer than the columns, sums of the
                columns' products would take more memory and time than the tokens themselves.
        """
        columns = weight.shape[1]
        stored = columns if kept is None else len(kept)
        self._weight, self._kept = weight, kept
        self._cross = torch.zeros(columns, stored) if tokens >= columns else None
        self._tokens: list[tuple[Tensor, Tensor]] = []  # W (x - y), and y with its weight
        self.moment = torch.zeros(stored, stored)
        self.exact_mean = torch.zeros(columns)
        self.mean = torch.zeros(stored)

    def add(self, exact: Tensor, inputs: Tensor, weights: Tensor) -> None:
        """Take ``[tokens, columns]`` of both networks in, with ``[tokens]`` weights of sum 1."""
        stored = inputs if self._kept is None else inputs[:, self._kept.long()]
        weighted = stored * weights[:, None]
        self.moment.addmm_(weighted.T, stored)
        if self._cross is None:
            self._tokens.append((self._weight @ (exact - inputs).T, weighted))
        else:
            self._cross.addmm_((exact - inputs).T, weighted)
        self.exact_mean += weights @ exact
        self.mean += weighted.sum(0)

    def correction(self, compensator: Compensator) -> Tensor:
        """``W E[(x - y) y^T] (E[y y^T] + ridge)^-1``, float32 ``[rows, stored]``.

        Args:
            compensator: Of ``moment``.
        """
        if self._cross is not None:
            return compensator.times_inverse(self._weight @ self._cross)
        lost, inputs = (
            torch.cat(parts, dim=dim)
            for parts, dim in zip(zip(*self._tokens, strict=True), (1, 0), strict=True)
        )
        return lost @ compensator.times_inverse(inputs)
