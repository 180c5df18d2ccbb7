"""What one simulated episode tells about its messages."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from qvla_ros.msg import ActionChunk
from qvla_ros.node.sim_parameters import SimParameters

_DROPS = ("drops_", "refused_")
_EXPIRED = "deadline_misses"


class Counts:
    """The newest counts on ``/diagnostics``, by node and name.

    Attributes:
        messages: How many came.
        trouble: What the newest one said if it is an error; else empty.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.trouble = ""
        self._newest: dict[tuple[str, str], int] = {}

    def take(self, message: DiagnosticArray) -> None:
        """Note the counts of a message."""
        for status in message.status:
            self.messages += 1
            failed = status.level == DiagnosticStatus.ERROR
            self.trouble = f"{status.name}: {status.message}" if failed else ""
            for entry in status.values:
                if entry.key.startswith(_DROPS) or entry.key == _EXPIRED:
                    self._newest[status.name, entry.key] = int(float(entry.value))

    def now(self) -> Counter[str]:
        """All of them, summed over the nodes."""
        total: Counter[str] = Counter()
        for (_, name), count in self._newest.items():
            total[name] += count
        return total


@dataclass(slots=True)
class EpisodeLog:
    """Grows while an episode runs.

    Attributes:
        before: The counts when it began.
        chunks: Chunks that came.
        ages_ms: Of the chunk behind each executed step.
        misses: Steps without a chunk to follow.
        resent: Frames sensed again because nobody answered.
    """

    before: Counter[str]
    chunks: list[ActionChunk] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)
    misses: int = 0
    resent: int = 0

    def facts(self, after: Counter[str], parameters: SimParameters) -> dict[str, Any]:
        """What the record of the episode holds of it."""
        grown = after - self.before
        ages = np.percentile(self.ages_ms, [50, 95, 100]) if self.ages_ms else np.full(3, -1.0)
        drops = {
            name.removeprefix("drops_"): count for name, count in grown.items() if name != _EXPIRED
        }
        return {
            "real_time_factor": float(parameters.real_time_factor),
            "camera_every": parameters.camera_every,
            "chunks": len(self.chunks),
            "chunk_age_ms": [round(float(age), 3) for age in ages],
            "deadline_misses": self.misses,
            "expired_chunks": grown[_EXPIRED],
            "drops": drops,
            "resent": self.resent,
        }
