"""The scores that ours is compared with, from a layer's second moment and its slopes."""

import torch
from torch import Tensor

from qvla_ros.quantize.compensation import DAMPING


def row_errors(steps: Tensor, moment: Tensor) -> Tensor:
    """``E (dW_r x)^2`` of every row: float64 ``[rows, widths]``.

    Args:
        steps: Changes of the weight, float32 ``[widths, rows, columns]``.
        moment: ``E[x x^T]``, ``[columns, columns]``.
    """
    return ((steps @ moment) * steps).sum(-1).double().clamp_min(0.0).T


def norm_products(errors: Tensor, slope_energy: Tensor, tokens: float) -> Tensor:
    """QVLA's eq. 6, squared: ``|dA/dY_r|^2 |dY_r|^2`` over the tokens of a frame.

    It is the Cauchy-Schwarz bound of the score that keeps sign and cancellation over tokens.

    Args:
        errors: float64 ``[rows, widths]``, mean over tokens.
        slope_energy: float64 ``[rows]``, squared norm over the tokens of a frame.
        tokens: Mean number in a frame.

    Returns:
        float64 ``[rows, widths + 1]``; the last column, 16 bits, is zero.
    """
    return _with_untouched(slope_energy[:, None] * errors * tokens)


def inverse_factor_scores(steps: Tensor, moment: Tensor) -> Tensor:
    """What QVLA's public code sums: ``sum_j dw_j^2 / d_j^2``, ``d = diag(chol(H^-1))``.

    ``H`` is the second moment of the layer's own inputs; no action and no gradient is in it.

    Args:
        steps: Changes of the weight, ``[widths, rows, columns]``.
        moment: ``[columns, columns]``.

    Returns:
        float64 ``[rows, widths + 1]``; the last column, 16 bits, is zero.
    """
    moment = moment.double()
    damping = DAMPING * float(moment.diagonal().mean())
    damped = moment + torch.eye(len(moment), dtype=torch.double) * damping
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).diagonal()
    return _with_untouched((steps.double().square() / factor.square()).sum(-1).T)


def _with_untouched(scores: Tensor) -> Tensor:
    return torch.cat([scores, torch.zeros(len(scores), 1, dtype=torch.float64)], dim=1)
