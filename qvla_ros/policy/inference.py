"""What one run of a policy gives, and what a policy must offer to be served."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.observation import Observation


@dataclass(frozen=True, slots=True)
class Inference:
    """One answer of a policy, and what it cost.

    Attributes:
        chunk: The actions in robot units, dated by the observation that they answer.
        stage_ms: Stage name (``"process"``, ``"model"``, ``"postprocess"``) to milliseconds spent.
    """

    chunk: ActionChunk
    stage_ms: Mapping[str, float]

    @property
    def total_ms(self) -> float:
        """Time of all stages together, milliseconds."""
        return float(sum(self.stage_ms.values()))


class ServedPolicy(Protocol):
    """What the inference loop and the replay need of a policy."""

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""

    @property
    def period_ns(self) -> int:
        """Time between two actions, nanoseconds."""

    def infer(self, observation: Observation) -> Inference:
        """The chunk that answers ``observation``; ``QvlaError`` or ``ValueError`` if it cannot."""

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held by the policy, by kind."""
