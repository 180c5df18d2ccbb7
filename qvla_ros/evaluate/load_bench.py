"""How long a packed checkpoint takes to load, and how much memory: measured in a fresh process."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.manifest import Manifest, PlanSummary
from qvla_ros.checkpoint.reader import read_checkpoint, read_manifest
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.evaluate.kernel_bench import PACKINGS, synthetic_layer
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.families import FAMILIES
from qvla_ros.policy.memory import process_memory
from qvla_ros.policy.policy import load_policy

_SHAPE = (4096, 4096)
_SCRIPT = "import sys; from qvla_ros.evaluate import load_bench; load_bench.load_here(sys.argv[1])"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Loading one checkpoint: a policy, or layers that can multiply.

    Attributes:
        file_bytes: Size of the file.
        seconds: Reading, checking and building the modules; the checksum included.
        peak_bytes: High-water mark of the resident memory above what it was before.
        steady_bytes: Resident memory that stays, above what it was before.
        layer_bytes: What the weights take by their own count.
    """

    file_bytes: int
    seconds: float
    peak_bytes: int
    steady_bytes: int
    layer_bytes: int

    @property
    def peak_over_file(self) -> float:
        """Peak of memory for each byte of the file."""
        return self.peak_bytes / self.file_bytes

    @property
    def steady_over_file(self) -> float:
        """Memory that stays for each byte of the file."""
        return self.steady_bytes / self.file_bytes

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        ratios = {
            "peak_over_file": self.peak_over_file,
            "steady_over_file": self.steady_over_file,
        }
        return {**asdict(self), **ratios}


def measure_load(path: Path) -> LoadResult:
    """Load a checkpoint in a child process, as the node does, and read its ``VmHWM``.

    The layers of a checkpoint that is of no family (``write_synthetic_checkpoint``) are loaded
    alone: there is no network to put them into.

    Raises:
        subprocess.CalledProcessError: The child failed; its message has been printed.
    """
    command = [sys.executable, "-c", _SCRIPT, str(path)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return LoadResult(path.stat().st_size, **json.loads(output))


def load_here(path: str) -> None:
    """Load a checkpoint in this fresh process and print what ``LoadResult`` tells, as JSON."""
    load = _policy if read_manifest(path).family in FAMILIES else _layers
    before = process_memory()["process_resident"]
    started = time.perf_counter()
    loaded, weight_bytes = load(path)
    seconds = time.perf_counter() - started
    after = process_memory()
    facts = {
        "seconds": seconds,
        "peak_bytes": after["process_peak"] - before,
        "steady_bytes": after["process_resident"] - before,
        "layer_bytes": weight_bytes,
    }
    print(json.dumps(facts))
    del loaded  # held until the memory was read


def _policy(path: str) -> tuple[object, int]:
    """A whole policy, and the bytes of its weights."""
    policy = load_policy(path)
    return policy, sum(policy.memory_bytes().values())


def _layers(path: str) -> tuple[object, int]:
    """The packed layers as modules, and their bytes."""
    layers = [QuantizedLinear(layer) for layer in read_checkpoint(path).layers.values()]
    return layers, sum(layer.memory_bytes() for layer in layers)


def write_synthetic_checkpoint(path: Path, least_bytes: int) -> int:
    """Write a checkpoint of one random layer under many names; the file's size.

    Args:
        path: Where to.
        least_bytes: The file has at least as many.
    """
    layer = synthetic_layer(*_SHAPE, PACKINGS[0])
    count = -(-least_bytes // layer.nbytes)
    layers = {name: replace(layer, name=name) for name in (f"layers.{i}" for i in range(count))}
    manifest = Manifest(
        family="synthetic",
        model_id="synthetic",
        source_fingerprint="0" * 64,
        model_config={},
        processing={},
        plan=PlanSummary.of([LayerSpec.of(layer) for layer in layers.values()], {}),
        quality={},
        created_by="qvla bench",
    )
    write_checkpoint(path, manifest, layers, {})
    return path.stat().st_size
