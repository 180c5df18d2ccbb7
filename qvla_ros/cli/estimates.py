"""What a long verb will take: printed first, kept, and held against what it really took."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.observation import Observation
    from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
    from qvla_ros.quantize.estimate import Estimate, Workload
    from qvla_ros.quantize.journal import Journal

ESTIMATES = "estimates.json"
"""Step to what it was estimated to take and what it took, in the work folder and beside OUT."""

_UNPLANNED_BITS = 8.0  # a weight, at most, when only milliseconds are asked for

OnProgress = Callable[[int, int], None]


class StageClock:
    """Seconds of every stage of a network, as ``on_progress`` tells that they are done.

    Attributes:
        seconds: Stage to its seconds; the first one that is done counts what came before it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Count from now; ``names`` in the order in which the stages will be done."""
        self._names = names
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def before(self, on_progress: OnProgress) -> OnProgress:
        """The same callback, called after the clock was read."""

        def tell(done: int, total: int) -> None:
            now = time.monotonic()
            self.seconds[self._names[done - 1]] = now - self._last
            self._last = now
            on_progress(done, total)

        return tell


def announce(what: str, estimate: "Estimate", work: Path | None = None) -> None:
    """Print what something will take, and refuse what this machine cannot do.

    Args:
        what: Is done.
        estimate: Of it.
        work: Work folder, if files will be written; what is in it already counts as written.

    Raises:
        ConfigurationError: It needs more memory or disk than there is.
    """
    print(f"estimate, {what}: {estimate}", file=sys.stderr, flush=True)
    _require_room(what, estimate, work)


def announce_measuring(
    model: "LoadedModel", observation: "Observation", frames: int, probes: int, work: Path
) -> None:
    """Announce a measurement on so many observations like this one."""
    from qvla_ros.quantize.estimate import flop_rate, measure_estimate

    workload = _expected(model, observation, frames)
    announce("measuring", measure_estimate(workload, probes, flop_rate()), work)


def announce_quantizing(
    model: "LoadedModel", observation: "Observation", frames: int, budget: "BitBudget", work: Path
) -> None:
    """Announce quantizing to a budget on so many observations like this one."""
    from qvla_ros.quantize.estimate import flop_rate, quantize_estimate

    workload = _expected(model, observation, frames)
    bits = budget.average_bits_per_weight or _UNPLANNED_BITS
    if budget.max_bytes is not None:
        bits = min(bits, 8 * budget.max_bytes / workload.weights)
    announce("quantizing", quantize_estimate(workload, bits, flop_rate()), work)


def _expected(model: "LoadedModel", observation: "Observation", frames: int) -> "Workload":
    from qvla_ros.quantize.estimate import Workload, expected_tokens

    tokens = expected_tokens(model.network, model.processing.prepare(observation), frames)
    return Workload.of(model.network, tokens, frames)


@contextmanager
def estimated(
    what: str, estimate: "Estimate", journal: "Journal", stages: Sequence[str]
) -> "Iterator[StageClock]":
    """Keep the estimate in the work folder, and at the end what it really took.

    Args:
        what: Is done.
        estimate: Of it.
        journal: Of the work folder.
        stages: Names, in the order in which they will be done.

    Raises:
        ConfigurationError: It needs more memory or disk than there is.
    """
    from qvla_ros.policy.memory import process_memory

    _require_room(what, estimate, journal.folder)
    path = journal.folder / ESTIMATES
    _keep(path, {what: {"estimated": estimate.to_json()}})
    began, clock = time.monotonic(), StageClock(stages)
    yield clock
    seconds = time.monotonic() - began
    peak = process_memory().get("process_peak")
    took = {"memory_bytes": peak, "seconds": seconds, "stage_seconds": clock.seconds}
    _keep(path, {what: {"estimated": estimate.to_json(), "took": took}})
    memory = "" if peak is None else f"{peak / 1e9:.1f} GB of memory, "
    print(f"{what} took {memory}{seconds / 60:.1f} min; estimated: {estimate}", file=sys.stderr)


def _keep(path: Path, steps: dict[str, object]) -> None:
    """Add steps to the file."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with atomic_file(path) as file:
        file.write(json.dumps({**kept, **steps}, indent=2).encode())


def require_float_model(folder: Path, bytes_each: int = 4) -> None:
    """Refuse to load a float network as a whole that does not fit into memory.

    Args:
        folder: Of the model.
        bytes_each: Of memory for one of its numbers.

    Raises:
        ConfigurationError: It does not fit.
        UnsupportedModelError: The folder cannot be read.
    """
    from qvla_ros.models.folder_survey import survey_folder

    wanted, there = bytes_each * survey_folder(folder).parameters, _memory_there()
    if there is not None and wanted > there:
        raise ConfigurationError(
            f"this holds the whole float network of {folder}, which takes {wanted / 1e9:.1f} GB; "
            f"{there / 1e9:.1f} GB of memory are available: end other programs, or use a smaller "
            "model or another machine"
        )


def _memory_there() -> int | None:
    """Bytes that this process may have in all; ``None`` if the system does not tell."""
    from qvla_ros.policy.memory import process_memory

    memory = process_memory()
    available = memory.get("machine_available")
    return None if available is None else available + memory.get("process_resident", 0)


def _require_room(what: str, estimate: "Estimate", work: Path | None) -> None:
    there = _memory_there()
    if there is not None and estimate.memory_bytes > there:
        raise ConfigurationError(
            f"{what} needs about {estimate.memory_bytes / 1e9:.1f} GB of memory, "
            f"{there / 1e9:.1f} GB are available: end other programs, use fewer --frames, or "
            "another machine"
        )
    if work is not None:
        _require_disk(what, estimate.disk_bytes, work)


def _require_disk(what: str, wanted: int, work: Path) -> None:
    place = next(one for one in (work, *work.absolute().parents) if one.exists())
    written = sum(one.stat().st_size for one in work.glob("*") if one.is_file())
    there = shutil.disk_usage(place).free + written
    if wanted > there:
        raise ConfigurationError(
            f"{what} needs about {wanted / 1e9:.1f} GB of disk, {place} has "
            f"{there / 1e9:.1f} GB: make room, or name another place with --work"
        )


def quantize_estimate_of(model: "LoadedModel", plan: "BitPlan", frames: int = 1) -> "Estimate":
    """Of quantizing by a plan, on the frames that were measured."""
    from qvla_ros.quantize.estimate import Workload, flop_rate, quantize_estimate

    tokens = {name: len(weights) for name, weights in plan.token_weights.items()}
    work = Workload.of(model.network, tokens, frames)
    return quantize_estimate(work, plan.average_bits_per_weight, flop_rate())
