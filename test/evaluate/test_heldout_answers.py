"""Answers on many frames, and the hidden states behind them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qvla_ros.evaluate.heldout_answers import answer_batches


class Network(nn.Module):
    """Stands in for a network: a norm that is called twice, as when tokens are decoded in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = nn.Module()
        self.llama.norm = nn.LayerNorm(4)


class Policy:
    """Stands in for a policy whose hidden states are the batch itself, scaled by ``scale``."""

    def __init__(self, scale: torch.Tensor) -> None:
        self.network, self._scale = Network(), scale

    def normalized_actions(self, batch: SimpleNamespace) -> torch.Tensor:
        self.network.llama.norm(batch.hidden * self._scale)
        self.network.llama.norm(torch.full((1, 1, 4), torch.nan))
        if batch.fails:
            raise ValueError("no answer")
        return torch.zeros(len(batch.hidden), 1, 7)


def batches(fails: bool = False) -> list[SimpleNamespace]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (1, 5, 4))
    return [
        SimpleNamespace(hidden=torch.randn(s, generator=generator), fails=fails) for s in shapes
    ]


def test_hidden_states_of_the_first_pass_are_compared_at_unit_size():
    exact = answer_batches(Policy(torch.ones(4)), batches())
    assert exact.actions.values.shape == (3, 1, 7)
    larger = answer_batches(Policy(torch.full((4,), 3.0)), batches())
    assert larger.hidden_error_against(exact) == pytest.approx(0, abs=1e-3)
    turned = answer_batches(Policy(torch.tensor([1.0, 1.0, 1.0, -1.0])), batches())
    flat = torch.cat([one.hidden.flatten(0, 1) for one in batches()])
    unit = flat / flat.square().mean(-1, keepdim=True).sqrt()
    expected = (4 * unit[:, 3].square()).sum().div(unit.numel()).sqrt()
    assert turned.hidden_error_against(exact) == pytest.approx(float(expected), rel=1e-3)


def test_nothing_is_left_on_the_network_even_if_it_fails():
    policy = Policy(torch.ones(4))
    with pytest.raises(ValueError, match="no answer"):
        answer_batches(policy, batches(fails=True))
    assert not policy.network.llama.norm._forward_pre_hooks
