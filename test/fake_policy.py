"""A policy without a network: its answer can be foreseen, delayed and spoilt."""

import threading
from dataclasses import dataclass, field

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.observation import Observation
from qvla_ros.policy.inference import Inference


@dataclass
class FakePolicy:
    """Answers with rows ``[row, state[0], image mean]``; waits for ``gate`` and may be poisoned.

    Without ``state_names`` it takes no state, as autoregressive OpenVLA, and says 0 for it.
    """

    model_id: str = "fake"
    checkpoint_sha256: str = "00" * 32
    quant_tag: str = "none"
    image_names: tuple[str, ...] = ("primary", "wrist")
    action_names: tuple[str, ...] = ("row", "state", "grip")
    state_names: tuple[str, ...] = ("x", "y")
    horizon: int = 8
    period_ns: int = 50_000_000
    poisoned: bool = False
    golden_actions: np.ndarray | None = None
    seen: list[Observation] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def infer(self, observation: Observation) -> Inference:
        is_self_test = observation.stamp_ns == 0
        if not is_self_test:
            self.seen.append(observation)
            self.gate.wait(timeout=20)
        actions = np.zeros((self.horizon, 3), np.float32)
        actions[:, 0] = np.arange(self.horizon)
        seen = observation.state[0] if observation.state.size else 0.0
        actions[:, 1] = np.nan if self.poisoned and not is_self_test else seen
        actions[:, 2] = observation.images["primary"].mean()
        chunk = ActionChunk(observation.stamp_ns, self.period_ns, actions)
        return Inference(chunk, {"process": 1.0, "model": 2.0, "postprocess": 0.5})

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 123}
