"""Scales of groups or of rows: whichever the calibration frames like better."""

from collections.abc import Callable

import torch

from qvla_ros.errors import BudgetError
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.quantized_model import QuantizedModel, fake_quantized
from qvla_ros.quantize.rivals.contest import Contest


def better_of_groups_and_rows(
    contest: Contest, quantize: Callable[[bool], QuantizedModel]
) -> QuantizedModel:
    """The better of a method with scales of groups (true) and of rows (false).

    Scales of groups cost a quarter of a bit a weight, which at equal bytes is taken from the
    codes. Judged by the action error on the calibration frames; held-out frames have no say.

    Raises:
        BudgetError: Neither fits.
    """
    found: list[tuple[float, QuantizedModel]] = []
    expected = _answers(contest.network, contest.calibration)
    for grouped in (True, False):
        try:
            quantized = quantize(grouped)
        except BudgetError:
            continue
        answers = _answers(fake_quantized(contest.network, quantized), contest.calibration)
        found.append((float((answers - expected).abs().mean()), quantized))
    if not found:
        raise BudgetError("the budget is too small for this method at its narrowest width")
    return min(found, key=lambda judged: judged[0])[1]


def _answers(network: VlaNetwork, calibration: CalibrationSet) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in calibration.batches()])
