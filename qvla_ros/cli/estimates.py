"""The estimate of a long verb: printed first, kept, and held against what it really took."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.bit_plan import BitPlan
    from qvla_ros.quantize.estimate import Estimate
    from qvla_ros.quantize.journal import Journal

_FILE = "estimate.json"
_MEMINFO = Path("/proc/meminfo")


def announce(what: str, estimate: "Estimate") -> None:
    """Print what something will take, and refuse what this machine cannot do.

    Raises:
        ConfigurationError: It needs more memory than the machine has.
    """
    from qvla_ros.quantize.estimate import total_memory

    print(f"estimate, {what}: {estimate}", file=sys.stderr, flush=True)
    there = total_memory(_MEMINFO.read_text().splitlines()) if _MEMINFO.exists() else None
    if there is not None and estimate.memory_bytes > there:
        raise ConfigurationError(
            f"{what} needs about {estimate.memory_bytes / 1e9:.1f} GB of memory, this machine has "
            f"{there / 1e9:.1f} GB: use fewer --frames, or another machine"
        )


@contextmanager
def estimated(what: str, estimate: "Estimate", journal: "Journal") -> Iterator[None]:
    """Announce, keep the estimate in the work folder, and tell the truth at the end."""
    announce(what, estimate)
    kept = journal.folder / _FILE
    if not kept.exists():
        with atomic_file(kept) as file:
            file.write(json.dumps({what: estimate.to_json()}, indent=2).encode())
    began = time.monotonic()
    yield
    from qvla_ros.policy.memory import process_memory

    peak = process_memory().get("process_peak")
    memory = "" if peak is None else f"{peak / 1e9:.1f} GB of memory, "
    took = (time.monotonic() - began) / 60
    print(f"{what} took {memory}{took:.1f} min; estimated: {estimate}", file=sys.stderr)


def quantize_estimate_of(model: "LoadedModel", plan: "BitPlan") -> "Estimate":
    """Of quantizing by a plan, on the frames that were measured."""
    from qvla_ros.quantize.estimate import Workload, flop_rate, quantize_estimate

    tokens = {name: len(weights) for name, weights in plan.token_weights.items()}
    work = Workload.of(model.network, tokens, 1)
    return quantize_estimate(work, plan.average_bits_per_weight, flop_rate())
