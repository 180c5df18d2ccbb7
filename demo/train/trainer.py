"""Behaviour cloning of the demo VLA, step by step, able to go on after ``kill -9``."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from demo.train.dataset import TaskSamples
from demo.train.layout import DINO, MEANS, SIGLIP_LIKE, STDS
from demo.train.training_state import TrainingState, read_state
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.openvla_oft import OpenVlaOft
from qvla_ros.models.processing import Processing

STATE_NOISE = 0.03  # of the normalised range: the state must not be trusted to the last digit
EMA_DECAY = 0.998
FROZEN = "vision_backbone.featurizer."
AIM = "aim_head."
_LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Choices of one training run.

    Attributes:
        steps: Optimizer steps.
        batch: Samples a step, divided evenly over the tasks, however many samples each has.
        learning_rate: Peak of the cosine schedule.
        aim_weight: Of the loss of the aim, see ``AimHead``.
        seed: Of the first weights and of the choice of samples.
        warmup: Steps of linear warm-up.
        weight_decay: Of AdamW.
        pretrained_share: Of the learning rate, for parameters that began pretrained.
    """

    steps: int
    batch: int
    learning_rate: float
    aim_weight: float = 0.5
    seed: int = 0
    warmup: int = 150
    weight_decay: float = 0.05
    pretrained_share: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine down to 2 %."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


class AimHead(nn.Module):
    """Asks the language model during training where the gripper will close and open.

    Scenes of a suite are alike, and the sentence says which bowl is meant. Cloning alone rewards
    knowing it only through small motions, early in an episode; this asks for the two places
    directly, of the hidden states that the action is made of. It is not part of the policy.
    """

    def __init__(self, width: int, offset: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.places = nn.Linear(width, len(offset))
        self._offset, self._scale = offset, scale
        self._hidden: Tensor | None = None

    def listen_to(self, network: OpenVlaOft) -> None:
        """Take note of what the action head of ``network`` reads."""
        network.action_head.register_forward_pre_hook(self._note)

    def error(self, aims: Tensor) -> Tensor:
        """Mean absolute error of the last forward pass, in standard deviations of the places."""
        if self._hidden is None:
            raise ValueError("the network has not run yet")
        told = self.places(self._hidden.float().mean(1))
        return (told - (aims - self._offset) / self._scale).abs().mean()

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._hidden = inputs[0]


class Trainer:
    """Fits the trained half of the network.

    Args:
        network: On the device on which it is to be trained.
        processing: Normalises states and actions.
        tasks: Their pixels and features are moved to the network's device.
        settings: How.
        purpose: What tells this training from others, e.g. digests of the data.
        path: Where its state is kept; an interrupted training goes on there.
        pretrained: Names of the parameters that began pretrained.

    Raises:
        ConfigurationError: ``path`` is the state of another training.
    """

    def __init__(
        self,
        network: OpenVlaOft,
        processing: Processing,
        tasks: Sequence[TaskSamples],
        settings: TrainingSettings,
        purpose: dict[str, object],
        path: Path,
        pretrained: Collection[str] = (),
    ) -> None:
        self._device = next(network.parameters()).device
        self._network, self._processing, self._settings = network, processing, settings
        self._tasks = [task.to(self._device) for task in tasks]
        self._path = path
        aims = torch.cat([task.aims for task in tasks])
        offset, scale = (one.to(self._device) for one in (aims.mean(0), aims.std(0) + 1e-3))
        self._aim = AimHead(network.llama.config.hidden_size, offset, scale).to(self._device)
        self._aim.listen_to(network)
        trained = dict(network.named_parameters())
        self._trained = {n: p for n, p in trained.items() if not n.startswith(FROZEN)}
        self._trained |= {f"{AIM}{name}": p for name, p in self._aim.named_parameters()}
        new = [p for name, p in self._trained.items() if name not in pretrained]
        old = [p for name, p in self._trained.items() if name in pretrained]
        groups = [{"params": new, "share": 1.0}]
        groups += [{"params": old, "share": settings.pretrained_share}] if old else []
        self._optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=settings.weight_decay, betas=(0.9, 0.95), fused=True
        )
        self.state = self._begin({**purpose, **asdict(settings)})

    def run(self, keep_every: int) -> dict[str, Tensor]:
        """Train to the end; the averaged weights of the policy, float32."""
        state, settings = self.state, self._settings
        began, before = time.monotonic(), state.seconds
        while state.step < settings.steps:
            self._step()
            state.seconds = before + time.monotonic() - began
            if state.step % keep_every == 0 or state.step == settings.steps:
                self._keep()
        return {n: t for n, t in state.averages.items() if not n.startswith(AIM)}

    def _begin(self, purpose: dict[str, object]) -> TrainingState:
        if not self._path.exists():
            weights = {name: p.detach() for name, p in self._trained.items()}
            return TrainingState(purpose, weights, {n: t.clone() for n, t in weights.items()})
        state = read_state(self._path, purpose, self._device)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state.weights[name])
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": state.moments[f"1/{name}"],
                    "exp_avg_sq": state.moments[f"2/{name}"],
                }
        print(f"going on after step {state.step}", flush=True)
        return state

    def _keep(self) -> None:
        self.state.weights = {name: p.detach() for name, p in self._trained.items()}
        for name, parameter in self._trained.items():
            slots = self._optimizer.state[parameter]
            if not slots:
                raise ValueError(f"{name} is trained but got no gradient")
            self.state.moments[f"1/{name}"] = slots["exp_avg"]
            self.state.moments[f"2/{name}"] = slots["exp_avg_sq"]
        self.state.write(self._path)

    def _step(self) -> None:
        state, settings = self.state, self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = group["share"] * settings.rate(state.step)
        rng = np.random.default_rng([settings.seed, state.step])
        count = max(1, settings.batch // len(self._tasks))
        losses = torch.stack([torch.stack(self._losses(t, count, rng)) for t in self._tasks])
        action, aim = losses.mean(0)
        self._optimizer.zero_grad()
        (action + settings.aim_weight * aim).backward()
        nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        self._optimizer.step()
        decay = min(EMA_DECAY, (1 + state.step) / (10 + state.step))
        for name, parameter in self._trained.items():
            state.averages[name].lerp_(parameter.detach(), 1 - decay)
        self._log((action.item(), aim.item()))
        state.step += 1

    def _log(self, losses: tuple[float, float]) -> None:
        state = self.state
        share = 1.0 if state.step == 0 else 0.02
        state.running = (
            state.running[0] + share * (losses[0] - state.running[0]),
            state.running[1] + share * (losses[1] - state.running[1]),
        )
        if state.step % _LOG_EVERY and state.step != self._settings.steps - 1:
            return
        state.curve.append((state.step, round(state.running[0], 5), round(state.running[1], 5)))
        eta = state.seconds / max(1, state.step) * (self._settings.steps - state.step)
        print(
            f"step {state.step}/{self._settings.steps}  L1 {state.running[0]:.4f}  "
            f"aim {state.running[1]:.3f}  ETA {eta:.0f} s",
            flush=True,
        )

    def _losses(self, task: TaskSamples, count: int, rng: np.random.Generator) -> list[Tensor]:
        """L1 of the normalised chunk, and the aim's."""
        processing, device = self._processing, self._device
        chosen = rng.integers(0, len(task.states), count)
        places = torch.from_numpy(chosen).to(device)
        variant = torch.from_numpy(rng.integers(0, len(task.pixels), count)).to(device)
        mean, std = (torch.tensor(rows[1], device=device)[:, None, None] for rows in (MEANS, STDS))
        pixels = (task.pixels[variant, places].flatten(0, 1).float() / 255 - mean) / std
        state = np.stack([processing.normalized_state(row) for row in task.states[chosen].numpy()])
        state += rng.normal(0, STATE_NOISE, state.shape).astype(np.float32)
        target = processing.normalized_actions(task.chunks[chosen].numpy()).clip(-1, 1)
        token_ids = torch.tensor(processing.token_ids(task.instruction), device=device)
        inputs = ModelInputs(
            pixels=pixels.new_zeros(count, 6, 1, 1),  # decode reads patches, not pixels
            token_ids=token_ids.expand(count, -1),
            end_token_id=processing.end_token_id,
            state=torch.from_numpy(state).to(device),
        )
        with torch.autocast(device.type, torch.bfloat16):
            own = self._network.vision_backbone.fused_featurizer(pixels)
            frozen = task.features[variant, places].flatten(0, 1)
            width = DINO.width + SIGLIP_LIKE.width
            patches = torch.cat([frozen, own], dim=-1).reshape(count, -1, width)
            actions = self._network.decode(patches, inputs)
        error = (actions - torch.from_numpy(target).to(device)).abs().mean()
        return [error, self._aim.error(task.aims[chosen].to(device))]
