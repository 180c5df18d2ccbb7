"""What comes of a soak, one for each strategy of overlapping chunks."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What came of a soak.

    Attributes:
        faults: Injected faults by kind.
        unsafe: Chunks sent and actions due that were unsafe, by kind.
        refused: Chunks that the node did not send because of what they say, by reason.
        chunks: Chunks sent, each looked at.
        seconds: How long it was on the node's clock.
        memory_growth_bytes: Resident memory at the end, less that after the first fifth.
    """

    faults: dict[str, int]
    unsafe: dict[str, int]
    refused: dict[str, int]
    chunks: int
    seconds: float
    memory_growth_bytes: int

    @property
    def fault_count(self) -> int:
        """All faults."""
        return sum(self.faults.values())


def soaks_to_json(soaks: Mapping[str, SoakResult]) -> dict[str, object]:
    """The figures of a part: sums over the strategies, and what each of them must show.

    Args:
        soaks: By strategy.
    """
    faults, unsafe = Counter[str](), Counter[str]()
    for one in soaks.values():
        faults += Counter(one.faults)
        unsafe += Counter(one.unsafe)
    return {
        "faults": dict(faults),
        "seconds": round(sum(one.seconds for one in soaks.values())),
        "chunks": sum(one.chunks for one in soaks.values()),
        "chunks_by_strategy": {name: one.chunks for name, one in soaks.items()},
        "refused_by_strategy": {name: one.refused for name, one in soaks.items()},
        "unsafe": dict(unsafe),
        "memory_growth_mb": max(one.memory_growth_bytes for one in soaks.values()) / 1e6,
    }
