"""The parts of ``make evidence-7b``: each runs the tool in processes of their own and looks."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.load_bench import measure_load

ROOT = Path(__file__).parents[1]
LLAMA_LAYERS = 32
"""Of the released models, to which seconds a layer are extrapolated."""

_PEAK = re.compile(r"peak memory ([\d,]+) MiB")
_ORACLES = (
    "test_vision_transformer.py",
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
        whole_path: Whether the whole model is quantized from a score table too.
    """

    full: str = "7b"
    wide: str = "wide"
    wide_layers: int = 2
    frames: int = 1
    probes: int = 1
    bits: float = 3.9
    whole_path: bool = False


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
    if place.scale.whole_path:
        found |= {"whole_quantize": _whole_quantize(place, folder, table)}
    shutil.rmtree(folder)
    return found


def _whole_quantize(place: Place, folder: Path, table: Path) -> dict[str, object]:
    """``qvla quantize`` of the whole model from a score table, and ``qvla verify`` of the file."""
    out = place.work / "quantized.qvla.safetensors"
    frames = ("--frames", place.scale.frames)
    words = (folder, place.bag, "--table", table, "--bits", place.scale.bits, "--out", out)
    quantized = succeeded(qvla("quantize", *words, *frames, "--json"))
    verified = succeeded(qvla("verify", out, folder, place.bag, *frames, "--json"))
    facts = json.loads(quantized.out)
    found = {
        "frames": place.scale.frames,
        "seconds": quantized.seconds,
        "peak_gb": quantized.peak_mb / 1e3,
        "file_bytes": facts["file_bytes"],
        "share_of_bf16": facts["share_of_bf16"],
        "estimates": [line for line in quantized.error.splitlines() if "estimate" in line],
        "verify_seconds": verified.seconds,
        "verify_peak_gb": verified.peak_mb / 1e3,
    }
    out.unlink()
    return found


def full_width(place: Place) -> dict[str, object]:
    """Measure, plan, quantize and verify a model of full width and few Llama layers."""
    folder, table = place.work / "wide", place.work / "wide.table.safetensors"
    out = place.work / "wide.qvla.safetensors"
    size = ("--scale", place.scale.wide, "--llama-layers", place.scale.wide_layers)
    succeeded(qvla("synthesize", folder, *size))
    measured = step(place, "measure", folder, table)
    bits = ("--bits", place.scale.bits)
    planned = succeeded(qvla("plan", table, "--model", folder, *bits, "--dry-run"))
    quantized = step(place, "quantize", folder, table, out)
    words = ("verify", out, folder, place.bag, "--frames", place.scale.frames, "--json")
    verified = succeeded(qvla(*words))
    peaks = {
        "measure": measured["peak_bytes"] / 1e9,
        "plan": planned.peak_mb / 1e3,
        "quantize": quantized["peak_bytes"] / 1e9,
        "verify": verified.peak_mb / 1e3,
    }
    shutil.rmtree(folder)
    return {
        "full_width_llama_layers": place.scale.wide_layers,
        "full_width_frames": place.scale.frames,
        "full_width_probes": place.scale.probes,
        "full_width_peak_gb": max(peaks.values()),
        "full_width_peaks_gb": peaks,
        "per_layer_seconds": {
            name: {
                "llama_layer": one["llama_layer_seconds"],
                "vision_towers": one["vision_seconds"],
                "rest": one["other_seconds"],
                "extrapolated_32_layers": one["seconds"]
                + (LLAMA_LAYERS - place.scale.wide_layers) * one["llama_layer_seconds"],
            }
            for name, one in (("measure", measured), ("quantize", quantized))
        },
        "full_width_estimates": {
            name: {"estimate": one["estimate"], "peak_bytes": one["peak_bytes"],
                   "seconds": one["seconds"]}
            for name, one in (("measure", measured), ("quantize", quantized))
        },
        "verified": json.loads(verified.out),
    }  # fmt: skip


def step(
    place: Place, name: str, folder: Path, table: Path, out: Path | None = None
) -> dict[str, float]:
    """One step of ``demo.seven_b_stages`` in a process of its own.

    Raises:
        ConfigurationError: It failed; the end of what it said.
    """
    words: list[object] = [sys.executable, "-m", "demo.seven_b_stages", name]
    words += ["--model", folder, "--bag", place.bag, "--table", table]
    words += ["--work", place.work / f"{name}.work", "--frames", place.scale.frames]
    words += ["--probes", place.scale.probes, "--bits", place.scale.bits]
    words += [] if out is None else ["--out", out]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    shutil.rmtree(place.work / f"{name}.work", ignore_errors=True)
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


def errors(place: Place) -> dict[str, object]:
    """Every fault of a folder: one clear error, nothing written."""
    pristine = place.work / "pristine"
    succeeded(qvla("synthesize", pristine, "--scale", "tiny", "--unnorm-key", "mine"))
    checked = {}
    for name, (damage, said) in FAULTS.items():
        folder = Path(shutil.copytree(pristine, place.work / "damaged"))
        words = damage(folder)
        out = place.work / "nothing" / "policy.qvla.safetensors"
        out.parent.mkdir()
        ran = qvla("quantize", folder, place.bag, "--bits", 4, "--frames", 2, "--out", out, *words)
        told = [line for line in ran.error.splitlines() if line.startswith("qvla quantize:")]
        checked[name] = {
            "refused": ran.code == 2 and len(told) == 1 and said in ran.error,
            "nothing_written": not any(out.parent.iterdir()),
            "says": told[0].replace(str(place.work), "…")[:200] if told else ran.error[-200:],
        }
        shutil.rmtree(folder)
        shutil.rmtree(out.parent)
    return {"errors_checked": checked}


def _last_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[-1]


def _truncate(folder: Path) -> Sequence[str]:
    shard = _last_shard(folder)
    with shard.open("rb+") as file:
        file.truncate(shard.stat().st_size - 100)
    return ()


def _garble_header(folder: Path) -> Sequence[str]:
    with _last_shard(folder).open("rb+") as file:
        file.seek(12)
        file.write(b"\0\0\0\0")
    return ()


def _lose_head(folder: Path) -> Sequence[str]:
    next(folder.glob("action_head--*.pt")).unlink()
    next(folder.glob("proprio_projector--*.pt")).rename(
        folder / "proprio_projector--1_checkpoint.pt"
    )
    return ()


def _other_key(folder: Path) -> Sequence[str]:
    return ("--unnorm-key", "another")


def _unknown_tensor(folder: Path) -> Sequence[str]:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["lora_A.weight"] = _last_shard(folder).name
    index.write_text(json.dumps(value))
    return ()


FAULTS: dict[str, tuple[Callable[[Path], Sequence[str]], str]] = {
    "truncated shard": (_truncate, "shard"),
    "corrupt shard": (_garble_header, "shard"),
    "missing head": (_lose_head, "action_head"),
    "wrong statistics key": (_other_key, "another"),
    "unknown tensor": (_unknown_tensor, "lora_A.weight"),
}
"""What is done to a folder, giving further arguments, and a word that the error must have."""
