"""Where a training stands, as one file: after ``kill -9`` it goes on as if nothing had been."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

_KEY = "training"


@dataclass(slots=True)
class TrainingState:
    """Everything that the next step depends on; random numbers come from seed and step alone.

    Attributes:
        purpose: What is trained with what; a state of another purpose is refused.
        weights: Of the trained parameters, by name.
        averages: Their moving averages: what is written in the end.
        moments: AdamW's two moments, by ``"1/NAME"`` and ``"2/NAME"``.
        step: Steps done.
        running: The smoothed losses of action and aim.
        curve: ``(step, L1, aim)``, smoothed; the aim in standard deviations of the places.
        seconds: Time spent on the steps.
    """

    purpose: dict[str, object]
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    moments: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    running: tuple[float, float] = (0.0, 0.0)
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write it completely or not at all."""
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group in ("weights", "averages", "moments")
            for name, tensor in getattr(self, group).items()
        }
        told = {
            "purpose": self.purpose,
            "step": self.step,
            "running": self.running,
            "curve": self.curve,
            "seconds": self.seconds,
        }
        with atomic_file(path) as file:
            file.write(save(tensors, {_KEY: json.dumps(told)}))


def read_state(path: Path, purpose: dict[str, object], device: torch.device) -> TrainingState:
    """Read what ``TrainingState.write`` wrote.

    Raises:
        ConfigurationError: It was trained for another purpose; the message says what differs.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        told = json.loads(file.metadata()[_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wanted = json.loads(json.dumps(purpose))
    different = [key for key in wanted if told["purpose"].get(key) != wanted[key]]
    if different:
        raise ConfigurationError(
            f"{path} is of a training with another {', '.join(different)}: name another --work, "
            "or remove it"
        )

    def group(name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

    return TrainingState(
        purpose=wanted,
        weights=group("weights"),
        averages=group("averages"),
        moments=group("moments"),
        step=told["step"],
        running=tuple(told["running"]),
        curve=[tuple(point) for point in told["curve"]],
        seconds=told["seconds"],
    )
