"""OpenVLA: one action, number after number, as tokens of a causal Llama.

Token sequence: ``[BOS][256 patches of the image][prompt]``, then the tokens of the action. Of the
vocabulary's end, ``action_bins`` tokens stand for the centres of that many equal intervals.

There are two answers. ``forward`` is what is deployed: greedy decoding, with a cache of keys and
values. Greedy decoding has no gradient, so ``stages()`` run once over the whole sequence, with the
tokens of the float network's own greedy answer in place (teacher forcing), and answer for each
number the *expectation* of the centre under the softmax over the action tokens. It is the smooth
form of the same choice: the sharper the softmax, the nearer it is to the centre of the greedy
token, and equal to it in the limit. It also sees a change of confidence that does not change the
token yet, which is what a sensitivity has to see.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from qvla_ros.models.llama_layer import KeyValueCache, causal_mask, run_llama_layer
from qvla_ros.models.network import ACTIONS, ModelInputs, VlaNetwork
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_backbone import TOWERS, Projector, VisionBackbone
from qvla_ros.models.vision_transformer import TowerConfig


@dataclass(frozen=True, slots=True)
class OpenVlaConfig:
    """Everything that decides the shape of the network.

    Attributes:
        towers: The two vision towers, DINOv2-like first.
        llama: Arguments of ``transformers.LlamaConfig``.
        action_dim: Numbers an action, which is as many tokens.
        action_bins: Tokens that stand for numbers.
        vocabulary: Tokens that the tokenizer knows: the action tokens are the last of them, the
            last one for the lowest number. The embedding has some rows more.
    """

    towers: tuple[TowerConfig, TowerConfig]
    llama: dict[str, int | float | str | bool | None]
    action_dim: int
    action_bins: int
    vocabulary: int

    def __post_init__(self) -> None:
        if self.action_dim < 1 or self.action_bins < 2:
            raise ValueError("an action needs a number, and numbers two bins")
        rows = self.llama.get("vocab_size")
        if type(rows) is int and not self.action_bins <= self.vocabulary <= rows:
            raise ValueError(
                f"{self.action_bins} action bins do not end at token {self.vocabulary} of {rows}"
            )

    @property
    def vision_width(self) -> int:
        """Width of the concatenated patch features."""
        return sum(tower.width for tower in self.towers)

    @property
    def horizon(self) -> int:
        """Actions an answer."""
        return 1


class OpenVla(VlaNetwork):
    """The network without the vision blocks that it never executes."""

    family = "openvla"
    config: OpenVlaConfig

    def __init__(self, config: OpenVlaConfig) -> None:
        super().__init__()
        self.config = config
        llama = LlamaConfig(**config.llama)
        self.vision_backbone = VisionBackbone(config.towers)
        self.projector = Projector(config.vision_width, llama.hidden_size)
        self.language_model = nn.ModuleDict(
            {
                "model": LlamaModel(llama),
                "lm_head": nn.Linear(llama.hidden_size, llama.vocab_size, bias=False),
            }
        )

    @property
    def llama(self) -> LlamaModel:
        """The language model without its output head."""
        return cast(LlamaModel, self.language_model["model"])

    def forward(self, inputs: ModelInputs) -> Tensor:
        """The deployed answer: bin centres of the greedy tokens, float32 ``[batch, 1, dim]``."""
        return self.bin_centres(self.greedy_tokens(inputs))[:, None]

    def first_state(self, inputs: ModelInputs) -> State:
        """What the first stages read: the pixels of each tower and the embedded text.

        The text ends with the action tokens but the last: those of ``inputs``, or else the
        network's own greedy answer, which costs a decoding.
        """
        answer = inputs.action_ids
        if answer is None:
            answer = self.greedy_tokens(inputs)
        return self._begin(inputs, torch.cat([inputs.token_ids, answer[:, :-1]], dim=1))

    def taught(self, inputs: ModelInputs) -> ModelInputs:
        """The inputs with the tokens of the network's own greedy answer."""
        return replace(inputs, action_ids=self.greedy_tokens(inputs))

    def stages(self) -> list[Stage]:
        """The differentiable answer, one block at a time, in execution order."""
        stages = self._before_llama()
        for index, layer in enumerate(self.llama.layers):
            path = f"language_model.model.layers.{index}"
            stages.append(Stage(path, ("hidden",), "hidden", partial(self._causal, layer)))
        stages.append(Stage("language_model.lm_head", ("hidden",), ACTIONS, self._expectation))
        return stages

    @torch.no_grad()
    def greedy_tokens(self, inputs: ModelInputs) -> Tensor:
        """The likeliest token after the prompt, and after each answer; ``int64 [batch, dim]``."""
        stages = self._before_llama()
        hidden = run_stages(stages, self._begin(inputs, inputs.token_ids))["hidden"]
        batch, prefix, _ = hidden.shape
        room = prefix + self.config.action_dim - 1
        cached = KeyValueCache(self.llama, batch, room, hidden)
        cached.positions = torch.arange(prefix, device=hidden.device)
        tokens: list[Tensor] = []
        while True:
            mask = causal_mask(cached.positions, room, hidden)
            for layer in self.llama.layers:
                hidden = run_llama_layer(self.llama, layer, hidden, mask, cached)
            logits = self._logits(hidden[:, -1:])
            tokens.append(logits[:, -1].argmax(-1))
            if len(tokens) == self.config.action_dim:
                return torch.stack(tokens, dim=1)
            hidden = self.llama.embed_tokens(tokens[-1])[:, None]
            cached.positions = cached.positions[-1:] + 1

    def bin_centres(self, tokens: Tensor) -> Tensor:
        """The number that each token stands for, float32; other tokens count as the nearest bin.

        ``action_bins`` edges have one centre fewer than tokens, so two tokens share the last one.
        """
        edges = torch.linspace(-1, 1, self.config.action_bins, device=tokens.device)
        centres = (edges[1:] + edges[:-1]) / 2
        return centres[(self.config.vocabulary - 1 - tokens).clamp(0, len(centres) - 1)]

    def _begin(self, inputs: ModelInputs, token_ids: Tensor) -> State:
        images = inputs.pixels.unflatten(1, (2, 3)).unbind(1)
        embedded = self.llama.embed_tokens(token_ids).to(inputs.pixels.dtype)
        return {**dict(zip(TOWERS, images, strict=True)), "text": embedded}

    def _before_llama(self) -> list[Stage]:
        stages = []
        for name in TOWERS:
            stages += self.vision_backbone.stages(name)
        return [*stages, Stage("projector", (*TOWERS, "text"), "hidden", self._sequence)]

    def _sequence(self, first: Tensor, second: Tensor, text: Tensor) -> Tensor:
        patches = self.projector(torch.cat([first, second], dim=-1))
        return torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)

    def _causal(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        mask = causal_mask(positions, len(positions), hidden)
        return run_llama_layer(self.llama, layer, hidden, mask)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of every token, at least float32 ``[batch, tokens, vocabulary]``."""
        logits = self.language_model["lm_head"](self.llama.norm(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _expectation(self, hidden: Tensor) -> Tensor:
        """Mean bin centre under the softmax over action tokens, ``[batch, 1, action_dim]``."""
        config = self.config
        tokens = torch.arange(
            config.vocabulary - config.action_bins, config.vocabulary, device=hidden.device
        )
        logits = self._logits(hidden[:, -config.action_dim :])[..., tokens]
        centres = self.bin_centres(tokens).to(logits.dtype)
        return (logits.softmax(-1) @ centres)[:, None]
