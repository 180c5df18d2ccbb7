"""What a policy answers on many frames, and the last hidden states of its language model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qvla_ros.evaluate.comparison import NormalizedActions
from qvla_ros.models.network import ModelInputs
from qvla_ros.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class HeldoutAnswers:
    """The answers of one policy, batch by batch.

    Attributes:
        actions: Normalised actions of all frames, in order.
        hidden: float16 ``[batch, tokens, width]`` of each batch: what the language model's final
            norm reads in its first pass, each token at unit root mean square.
    """

    actions: NormalizedActions
    hidden: tuple[Tensor, ...]

    def hidden_error_against(self, reference: "HeldoutAnswers") -> float:
        """Root mean square difference of the hidden states, over all tokens alike.

        It is the fidelity to data that quantizers of language models aim at; they do not know
        which tokens become actions. It is taken behind all layers because inside of them methods
        may scale columns, which changes what a layer answers but not what the network does.
        """
        total, count = 0.0, 0
        for one, other in zip(self.hidden, reference.hidden, strict=True):
            total += float((one.float() - other.float()).square().sum(dtype=torch.float64))
            count += one.numel()
        return math.sqrt(total / count)


def answer_batches(policy: Policy, batches: Sequence[ModelInputs]) -> HeldoutAnswers:
    """The answers of a policy to many frames at once."""
    actions, hidden, seen = [], [], list[Tensor]()
    norm = cast(nn.Module, policy.network.llama.norm)

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen:
            seen.append(inputs[0].float())

    handle = norm.register_forward_pre_hook(note)
    try:
        for batch in batches:
            actions.append(policy.normalized_actions(batch))
            first = seen[0]
            hidden.append((first / first.square().mean(-1, keepdim=True).sqrt()).half())
            seen.clear()
    finally:
        handle.remove()
    return HeldoutAnswers(NormalizedActions(torch.cat(actions).float().numpy()), tuple(hidden))
