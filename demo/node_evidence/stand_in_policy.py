"""A policy without a network, which fails in every way that a policy can, as often as told."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.observation import Observation
from qvla_ros.policy.inference import Inference

ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
WAYS = ("nan", "infinity", "beyond_limits", "error", "slow", "crash")
"""How an answer can be spoilt."""
SPOILT = "spoilt stand-in"
"""Name of the checkpoint of the node whose policy fails as it can without ending the service."""
LIMITS_YAML = "limits:\n" + "".join(
    f"  {name}: {{lower: -1.0, upper: 1.0, max_step: 0.2}}\n" for name in ACTION_NAMES
)


@dataclass
class StandInPolicy:
    """Answers at once with small actions, or spoils the answer.

    Attributes:
        spoil: Share of the answers that are spoilt.
        ways: In which they are, evenly.
        restless: Share of the answers that want to be elsewhere in ``dy`` at once: each is within
            the limits, but the step from one to the other often is not.
        seed: Of the random choices.
        spend: Called with the nanoseconds that an inference takes.
        counts: Spoilt answers by kind.
    """

    spoil: float = 0.0
    ways: tuple[str, ...] = WAYS
    restless: float = 0.0
    seed: int = 0
    spend: Callable[[int], None] = lambda _: None
    model_id: str = "stand-in"
    checkpoint_sha256: str = "00" * 32
    quant_tag: str = "none"
    image_names: tuple[str, ...] = ("primary", "wrist")
    action_names: tuple[str, ...] = ACTION_NAMES
    state_names: tuple[str, ...] = ("x", "y")
    horizon: int = 8
    period_ns: int = 50_000_000
    golden_actions: np.ndarray | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._place = 0.25
        self.hanging = threading.Event()
        self.release = threading.Event()

    def infer(self, observation: Observation) -> Inference:
        """The chunk, or what is spoilt of it."""
        began = time.perf_counter()
        actions = np.full((self.horizon, len(self.action_names)), 0.25, np.float32)
        actions[:, 0] = np.clip(observation.state[0], -1, 1)
        is_question = observation.stamp_ns != 0  # not the self-test's
        if is_question and self._random.random() < self.restless:
            self._place = self._random.uniform(-1, 1)
        actions[:, 1] = self._place
        if is_question and self._random.random() < self.spoil:
            self._spoil(actions)
        chunk = ActionChunk(observation.stamp_ns, self.period_ns, actions)
        return Inference(chunk, {"model": 1e3 * (time.perf_counter() - began)})

    def memory_bytes(self) -> dict[str, int]:
        """No weights."""
        return {}

    def hang_next(self) -> None:
        """Let the next inference wait until ``release`` is set."""
        self.release.clear()
        self.hanging.set()

    def _spoil(self, actions: np.ndarray) -> None:
        place = self._random.randrange(actions.shape[0]), self._random.randrange(actions.shape[1])
        kind = self._random.choice(self.ways)
        if kind == "crash" and self._random.random() < 0.9:
            kind = "error"  # each crash latches a fault: a few are enough
        self.counts[f"policy_{kind}"] += 1
        if kind in ("nan", "infinity", "beyond_limits"):
            actions[place] = {"nan": np.nan, "infinity": np.inf, "beyond_limits": 50.0}[kind]
        elif kind == "slow":
            self.spend(self._random.choice((100, 300, 600)) * 1_000_000)
        elif kind == "error":
            raise ValueError("the policy cannot answer this")
        else:
            raise RuntimeError("device lost")


class HangingPolicy(StandInPolicy):
    """A stand-in that hangs when told to."""

    def infer(self, observation: Observation) -> Inference:
        """As the stand-in, after the release if it is to hang."""
        if self.hanging.is_set():
            self.hanging.clear()
            self.counts["policy_hang"] += 1
            self.release.wait(timeout=30)
        return super().infer(observation)


def load_stand_in(parameters: NodeParameters) -> StandInPolicy:
    """As the node loads a checkpoint, by its name alone."""
    if parameters.checkpoint != SPOILT:
        return StandInPolicy()
    ways = tuple(way for way in WAYS if way != "crash")  # that is for an operator to reset
    return StandInPolicy(0.2, ways, restless=0.2, spend=lambda passed: time.sleep(passed / 1e9))


def write_limits(folder: Path) -> Path:
    """A file of limits that the stand-in's good answers keep."""
    path = folder / "limits.yaml"
    path.write_text(LIMITS_YAML)
    return path
