"""What every family of networks has in common: it runs in stages and names its weight matrices.

Whoever looks into a network (the quantizer, the report, a bench) speaks to this class only.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import LlamaModel

from qvla_ros.models.linear_layer import LinearLayer, Part
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_backbone import Projector, VisionBackbone

ACTIONS = "actions"
"""Name of the last stage's answer: float32 ``[batch, horizon, action_dim]``, normalised."""

_QUANTIZED: tuple[tuple[str, Part], ...] = (
    ("vision_backbone", "vision"),
    ("language_model.model", "language"),
)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One batch, ready for the network.

    Attributes:
        pixels: float ``[batch, views * 6, side, side]``; per view, three channels a tower.
        token_ids: int64 ``[batch, tokens]``: BOS, then the prompt; one length in a batch.
        end_token_id: Id of the token that closes the sequence.
        state: float ``[batch, state_dim]``, normalised.
        action_ids: int64 ``[batch, action_dim]`` for networks that decode token by token: the
            answer whose tokens the stages see; ``None``: the network's own.
    """

    pixels: Tensor
    token_ids: Tensor
    end_token_id: int
    state: Tensor
    action_ids: Tensor | None = None


class VlaNetwork(nn.Module, ABC):
    """A vision-language-action network.

    It has two answers, of the same shape. ``forward`` is the one that the robot executes.
    ``stages()`` end with a differentiable one, for whoever looks into the network: the same where
    the robot's answer is differentiable itself, else a smooth form of it.

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
        """The differentiable answer, block by block in execution order; it ends with ``ACTIONS``."""

    @abstractmethod
    def first_state(self, inputs: ModelInputs) -> State:
        """What the first stages read."""

    def taught(self, inputs: ModelInputs) -> ModelInputs:
        """The same inputs with everything that ``first_state`` would have to find out by running.

        Worth it for inputs that are looked at more than once, and it fixes the answer whose tokens
        a changed copy of the network sees.
        """
        return inputs

    def linear_layers(self) -> list[LinearLayer]:
        """Every weight matrix that is quantized, in execution order: towers and Llama's layers."""
        layers = []
        for prefix, part in _QUANTIZED:
            for name, module in self.get_submodule(prefix).named_modules(prefix=prefix):
                if isinstance(module, nn.Linear):
                    layers.append(LinearLayer(name, module.out_features, module.in_features, part))
        return layers

    def forward(self, inputs: ModelInputs) -> Tensor:
        """The deployed answer: normalised actions, float32 ``[batch, horizon, action_dim]``."""
        return run_stages(self.stages(), self.first_state(inputs))[ACTIONS]
