"""The parts of ``make evidence-7b``: each runs the tool in processes of their own and looks."""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.load_bench import measure_load

ROOT = Path(__file__).parents[1]

_PEAK = re.compile(r"peak memory ([\d,]+) MiB")
_ORACLES = (
    "test_vision_transformer.py",
    "test_openvla.py",
    "test_openvla_oft.py",
    "test_robots.py",
    "test_released_layout.py",
    "test_load_model.py",
    "test_processing.py",
    "test_stages.py",
    "test_weight_source.py",
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is.

    Attributes:
        full: ``--scale`` of the whole model.
        wide: ``--scale`` of the model whose layers are timed.
        wide_layers: Its Llama layers.
        frames: Calibration frames.
        probes: Backward passes a frame.
        bits: Average bits a weight.
    """

    full: str = "7b"
    wide: str = "wide"
    wide_layers: int = 2
    frames: int = 1
    probes: int = 1
    bits: float = 3.9


@dataclass(frozen=True, slots=True)
class Place:
    """Where it happens.

    Attributes:
        work: For everything that is written; large.
        bag: An episode of a robot with the cameras and the state that the models want.
        scale: How large.
    """

    work: Path
    bag: Path
    scale: Scale


@dataclass(frozen=True, slots=True)
class Ran:
    """One ``qvla`` command.

    Attributes:
        code: Exit code.
        out: Standard output.
        error: Standard error.
        seconds: From start to end.
        peak_mb: ``VmHWM``, 10^6 bytes; NaN if the verb did not finish.
    """

    code: int
    out: str
    error: str
    seconds: float
    peak_mb: float


def qvla(*words: object) -> Ran:
    """Run a verb in a process of its own."""
    command = [sys.executable, "-m", "qvla_ros.cli.main", *map(str, words)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    seconds = time.monotonic() - began
    found = _PEAK.search(done.stderr)
    peak = float(found.group(1).replace(",", "")) * 2**20 / 1e6 if found else float("nan")
    return Ran(done.returncode, done.stdout, done.stderr, seconds, peak)


def succeeded(ran: Ran) -> Ran:
    """The same; an error if the command failed.

    Raises:
        ConfigurationError: With the end of what it said.
    """
    if ran.code != 0:
        raise ConfigurationError(f"qvla failed: {ran.error.strip()[-400:]}")
    return ran


def oracles(place: Place) -> dict[str, object]:
    """The tests that hold our models against others' and against the released layout."""
    report = place.work / "oracles.xml"
    tests = [ROOT / "test" / "models" / name for name in _ORACLES]
    words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *map(str, tests)]
    subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise ConfigurationError("pytest wrote no report")
    count, failed, skipped = (int(suite.get(key, "0")) for key in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors", "0"))
    return {
        "oracles": {
            "tests": count,
            "passed": count - failed - skipped,
            "failed": failed,
            "skipped": skipped,
            "files": list(_ORACLES),
        }
    }


def whole_model(place: Place) -> dict[str, object]:
    """A folder of full size: written, inspected, planned for, and packed."""
    folder, table = place.work / "whole", place.work / "whole.table.safetensors"
    made = succeeded(qvla("synthesize", folder, "--scale", place.scale.full))
    looked = succeeded(qvla("inspect", folder, "--json"))
    step(place, "table", folder, table)
    words = ("plan", table, "--model", folder, "--bits", place.scale.bits, "--dry-run", "--json")
    planned = succeeded(qvla(*words))
    path = place.work / "whole.qvla.safetensors"
    packed = step(place, "nearest", folder, table, path)
    loaded = measure_load(path)
    found: dict[str, object] = {
        "inspect": json.loads(looked.out),
        "inspect_seconds": looked.seconds,
        "inspect_peak_mb": looked.peak_mb,
        "synthesize_seconds": made.seconds,
        "plan_dry_run": {
            "seconds": planned.seconds,
            "peak_gb": planned.peak_mb / 1e3,
            **json.loads(planned.out),
        },
        "packed_average_bits": packed["average_bits"],
        "packed_ratio": packed["file_bytes"] / packed["bf16_bytes"],
        "packed_bytes": packed["file_bytes"],
        "packed_peak_gb": packed["peak_bytes"] / 1e9,
        "load_peak_over_file": loaded.peak_over_file,
        "load_seconds": loaded.seconds,
    }
    path.unlink()
    return found


def whole_quantize(place: Place) -> dict[str, object]:
    """``qvla quantize`` of that model from a score table, and ``qvla verify`` of the file."""
    folder, table = place.work / "whole", place.work / "whole.table.safetensors"
    out = place.work / "quantized.qvla.safetensors"
    frames = ("--frames", place.scale.frames)
    words = (folder, place.bag, "--table", table, "--bits", place.scale.bits, "--out", out)
    quantized = succeeded(qvla("quantize", *words, *frames, "--json"))
    verified = succeeded(qvla("verify", out, folder, place.bag, *frames, "--json"))
    facts = json.loads(quantized.out)
    found = {
        "frames": place.scale.frames,
        "bits": place.scale.bits,
        "seconds": quantized.seconds,
        "peak_gb": quantized.peak_mb / 1e3,
        "file_bytes": facts["file_bytes"],
        "share_of_bf16": facts["share_of_bf16"],
        "estimates": [line for line in quantized.error.splitlines() if "estimate" in line],
        "verify_seconds": verified.seconds,
        "verify_peak_gb": verified.peak_mb / 1e3,
    }
    return {"whole_quantize": found}


def step(
    place: Place, name: str, folder: Path, table: Path, out: Path | None = None
) -> dict[str, float]:
    """One step of ``demo.seven_b_stages`` in a process of its own.

    Raises:
        ConfigurationError: It failed; the end of what it said.
    """
    words: list[object] = [sys.executable, "-m", "demo.seven_b_stages", name]
    words += ["--model", folder, "--bag", place.bag, "--table", table]
    words += ["--frames", place.scale.frames, "--bits", place.scale.bits]
    words += [] if out is None else ["--out", out]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise ConfigurationError(f"{name} failed: {done.stderr.strip()[-400:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def families(place: Place) -> dict[str, object]:
    """Small models of both families through the same four commands."""
    found = {}
    for family in ("openvla_oft", "openvla"):
        folder = place.work / family
        out, table = folder.with_suffix(".qvla.safetensors"), folder.with_suffix(".table")
        model = (folder, "--robot", "libero")
        frames = ("--frames", 2)
        succeeded(qvla("synthesize", folder, "--scale", "tiny", "--family", family))
        measured = ("--out", table, *frames, "--probes", 1)
        succeeded(qvla("measure", *model, place.bag, *measured))
        succeeded(qvla("plan", table, "--model", *model, "--bits", 4, "--dry-run"))
        planned = ("--table", table, "--bits", 4, "--out", out, *frames)
        succeeded(qvla("quantize", *model, place.bag, *planned))
        verified = succeeded(qvla("verify", out, *model, place.bag, *frames, "--json"))
        found[family] = json.loads(verified.out)["action_error_l1"]
    return {"families_action_error": found}
