"""OpenVLA-OFT: parallel decoding of an action chunk by a bidirectional Llama.

Token sequence: ``[BOS][patches of every image][state][prompt][horizon * action_dim zeros][EOS]``.
The head reads the hidden state one position before each placeholder, as the model was trained.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from qvla_ros.models.action_head import L1ActionHead, ProprioProjector
from qvla_ros.models.linear_layer import LinearLayer, Part
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_transformer import TowerConfig, VisionTransformer

ACTIONS = "actions"
"""Name of the last stage's answer: float32 ``[batch, horizon, action_dim]``, normalised."""

_TOWERS = ("featurizer", "fused_featurizer")


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

    @property
    def vision_width(self) -> int:
        """Width of the concatenated patch features."""
        return sum(tower.width for tower in self.towers)

    @property
    def placeholders(self) -> int:
        """Action tokens in the sequence."""
        return self.horizon * self.action_dim


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


class VisionBackbone(nn.Module):
    """Two towers over the same image, features side by side."""

    def __init__(self, towers: tuple[TowerConfig, TowerConfig]) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0])
        self.fused_featurizer = VisionTransformer(towers[1])

    def stages(self, tower_name: str) -> list[Stage]:
        """One tower, block by block; the tensor is called after the tower."""
        tower = cast(VisionTransformer, self.get_submodule(tower_name))
        path, last = f"vision_backbone.{tower_name}", len(tower.blocks) - 1
        stages = [Stage(f"{path}.patch_embed", (tower_name,), tower_name, tower.embed)]
        for index, block in enumerate(tower.blocks):
            name = f"{path}.blocks.{index}"
            stages.append(Stage(name, (tower_name,), tower_name, block))
        final = stages[last + 1]
        stages[last + 1] = replace(
            final, apply=lambda tokens: tower.patch_features(tower.blocks[last](tokens))
        )
        return stages


class Projector(nn.Module):
    """Patch features to language tokens."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., vision_width]`` to ``[..., width]``."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class OpenVlaOft(nn.Module):
    """The network without what it never executes (last vision blocks, ``lm_head``)."""

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

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Answer normalised actions, float32 ``[batch, horizon, action_dim]``."""
        return run_stages(self.stages(), self.first_state(inputs))[ACTIONS]

    def decode(self, patches: Tensor, inputs: ModelInputs) -> Tensor:
        """The part behind the towers; ``patches`` is ``[batch, views * patches, vision_width]``."""
        features = patches.split([tower.width for tower in self.config.towers], dim=-1)
        state = {**self.first_state(inputs), **dict(zip(_TOWERS, features, strict=True))}
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
            **dict(zip(_TOWERS, images, strict=True)),
            "text": embed(inputs.token_ids),
            "end": embed(inputs.token_ids.new_full((batch, 1), inputs.end_token_id)),
            "proprio": inputs.state,
        }

    def stages(self) -> list[Stage]:
        """The forward pass, one block at a time, in execution order."""
        stages = []
        for name in _TOWERS:
            stages += self.vision_backbone.stages(name)
        stages.append(
            Stage("projector", (*_TOWERS, "text", "end", "proprio"), "hidden", self._sequence)
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
        length = hidden.shape[1]
        # An explicit all-zero additive mask makes every transformers version bidirectional.
        mask = hidden.new_zeros(len(hidden), 1, length, length)
        positions = torch.arange(length, device=hidden.device)[None]
        answer = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.llama.rotary_emb(hidden, positions),
            use_cache=False,
        )
        return answer[0] if isinstance(answer, tuple) else answer  # a tuple before 4.54

    def _actions(self, hidden: Tensor) -> Tensor:
        last = hidden.shape[1] - 2
        answers = self.llama.norm(hidden)[:, last - self.config.placeholders : last]
        actions = self.action_head(answers)
        return actions.to(torch.promote_types(actions.dtype, torch.float32))

    def linear_layers(self) -> list[LinearLayer]:
        """Every weight matrix of the vision towers and the language model, in execution order."""
        layers = []
        for name, module in self.named_modules():
            part = name.split(".", 1)[0]
            if part not in ("vision_backbone", "language_model"):
                continue
            if isinstance(module, nn.Linear):
                kind: Part = "vision" if part == "vision_backbone" else "language"
                layers.append(LinearLayer(name, module.out_features, module.in_features, kind))
        return layers
