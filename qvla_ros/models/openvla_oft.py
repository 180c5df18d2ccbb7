"""OpenVLA-OFT: parallel decoding of an action chunk by a bidirectional Llama.

Token sequence: ``[BOS][patches of every image][state][prompt][horizon * action_dim zeros][EOS]``.
The head reads the hidden state one position before each placeholder, as the model was trained.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from qvla_ros.models.action_head import L1ActionHead, ProprioProjector
from qvla_ros.models.llama_layer import run_llama_layer
from qvla_ros.models.network import ACTIONS, ModelInputs, VlaNetwork
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_backbone import TOWERS, Projector, VisionBackbone
from qvla_ros.models.vision_transformer import TowerConfig


@dataclass(frozen=True, slots=True)
class OpenVlaOftConfig:
    """Everything that decides the shape of the network.

    Attributes:
        towers: The two vision towers, DINOv2-like first.
        llama: Arguments of ``transformers.LlamaConfig``.
        views: Images an observation.
        horizon: Actions a chunk.
        action_dim: Numbers an action.
        state_dim: Numbers a state vector.
    """

    towers: tuple[TowerConfig, TowerConfig]
    llama: dict[str, int | float | str | bool | None]
    views: int
    horizon: int
    action_dim: int
    state_dim: int

    def __post_init__(self) -> None:
        if min(self.views, self.horizon, self.action_dim, self.state_dim) < 1:
            raise ValueError("views, horizon or a dimension is below 1")

    @property
    def vision_width(self) -> int:
        """Width of the concatenated patch features."""
        return sum(tower.width for tower in self.towers)

    @property
    def placeholders(self) -> int:
        """Action tokens in the sequence."""
        return self.horizon * self.action_dim


class OpenVlaOft(VlaNetwork):
    """The network without what it never executes (last vision blocks, ``lm_head``)."""

    family = "openvla_oft"
    config: OpenVlaOftConfig

    def __init__(self, config: OpenVlaOftConfig) -> None:
        super().__init__()
        self.config = config
        llama = LlamaConfig(**config.llama)
        self.vision_backbone = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, llama.hidden_size)
        self.language_model = nn.ModuleDict({"model": LlamaModel(llama)})
        self.proprio_projector = ProprioProjector(config.state_dim, llama.hidden_size)
        self.action_head = L1ActionHead(llama.hidden_size, config.action_dim)

    @property
    def llama(self) -> LlamaModel:
        """The language model without its (unused) output head."""
        return cast(LlamaModel, self.language_model["model"])

    def decode(self, patches: Tensor, inputs: ModelInputs) -> Tensor:
        """The part behind the towers; ``patches`` is ``[batch, views * patches, vision_width]``."""
        features = patches.split([tower.width for tower in self.config.towers], dim=-1)
        state = {**self.first_state(inputs), **dict(zip(TOWERS, features, strict=True))}
        behind = [stage for stage in self.stages() if not stage.name.startswith("vision_")]
        return run_stages(behind, state)[ACTIONS]

    def first_state(self, inputs: ModelInputs) -> State:
        """What the first stages read: the pixels of each tower and the embedded text.

        Returns:
            ``featurizer`` and ``fused_featurizer``: ``[batch * views, 3, side, side]``;
            ``text``: ``[batch, tokens, width]``; ``end``: ``[batch, 1, width]``;
            ``proprio``: ``[batch, state_dim]``.
        """
        embed = self.llama.embed_tokens
        batch = len(inputs.pixels)
        images = inputs.pixels.unflatten(1, (-1, 2, 3)).flatten(0, 1).unbind(1)
        return {
            **dict(zip(TOWERS, images, strict=True)),
            "text": embed(inputs.token_ids),
            "end": embed(inputs.token_ids.new_full((batch, 1), inputs.end_token_id)),
            "proprio": inputs.state,
        }

    def stages(self) -> list[Stage]:
        """The forward pass, one block at a time, in execution order."""
        stages = []
        for name in TOWERS:
            stages += self.vision_backbone.stages(name)
        stages.append(
            Stage("projector", (*TOWERS, "text", "end", "proprio"), "hidden", self._sequence)
        )
        for index, layer in enumerate(self.llama.layers):
            path = f"language_model.model.layers.{index}"
            stages.append(Stage(path, ("hidden",), "hidden", partial(self._llama_layer, layer)))
        stages.append(Stage("action_head", ("hidden",), ACTIONS, self._actions))
        return stages

    def _sequence(
        self, first: Tensor, second: Tensor, text: Tensor, end: Tensor, proprio: Tensor
    ) -> Tensor:
        batch, _, width = text.shape
        features = torch.cat([first, second], dim=-1)
        patches = self.projector(features.reshape(batch, -1, features.shape[-1]))
        state = self.proprio_projector(proprio)[:, None]
        zeros = text.new_zeros(batch, self.config.placeholders, width)
        return torch.cat([text[:, :1], patches, state, text[:, 1:], zeros, end], dim=1)

    def _llama_layer(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return run_llama_layer(self.llama, layer, hidden, mask=None)

    def _actions(self, hidden: Tensor) -> Tensor:
        last = hidden.shape[1] - 2
        answers = self.llama.norm(hidden)[:, last - self.config.placeholders : last]
        actions = self.action_head(answers)
        return actions.to(torch.promote_types(actions.dtype, torch.float32))
