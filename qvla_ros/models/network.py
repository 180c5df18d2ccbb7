"""What every family of networks has in common: it runs in stages and names its weight matrices.

Whoever looks into a network (the quantizer, the report, a bench) speaks to this class only.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import LlamaModel

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_backbone import Projector, VisionBackbone

ACTIONS = "actions"
"""Name of the last stage's answer: float32 ``[batch, horizon, action_dim]``, normalised."""


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One batch, ready for the network.

    Attributes:
        pixels: float ``[batch, views * 6, side, side]``; per view, three channels a tower.
        token_ids: int64 ``[batch, tokens]``: BOS, then the prompt; one length in a batch.
        end_token_id: Id of the token that closes the sequence.
        state: float ``[batch, state_dim]``, normalised.
    """

    pixels: Tensor
    token_ids: Tensor
    end_token_id: int
    state: Tensor


class VlaNetwork(nn.Module, ABC):
    """A vision-language-action network.

    Attributes:
        family: Name that a checkpoint carries, and the registry knows.
        config: Frozen dataclass of everything that decides the shape of the network.
        vision_backbone: Its two towers.
        projector: From patch features to language tokens.
    """

    family: ClassVar[str]
    config: Any
    vision_backbone: VisionBackbone
    projector: Projector

    @property
    @abstractmethod
    def llama(self) -> LlamaModel:
        """The language model without an output head."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The forward pass, one block at a time, in execution order; it ends with ``ACTIONS``."""

    @abstractmethod
    def first_state(self, inputs: ModelInputs) -> State:
        """What the first stages read."""

    @abstractmethod
    def linear_layers(self) -> list[LinearLayer]:
        """Every weight matrix that is quantized, in execution order."""

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Answer normalised actions, float32 ``[batch, horizon, action_dim]``."""
        return run_stages(self.stages(), self.first_state(inputs))[ACTIONS]
