"""``make evidence-runtime``: everything that is claimed of the kernels and of loading, measured.

    python -m demo.evidence_runtime --out evidence/runtime.json

At most a quarter of an hour on two idle cores; no GPU is needed, and what needs one is said to be
not measured. Nothing is read from an earlier run. A part that fails is a fault, and the others go
on. The parts are those of ``demo.runtime_parts``, each in a process of its own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.provenance import ROOT, evidence_file, provenance, write_evidence
from demo.runtime_parts import PARTS, TESTS, TOKENS
from qvla_ros.evaluate.compile_gates import ARCHITECTURES

VERSIONS = ("torch", "transformers", "numpy")
PART_SECONDS = 600
"""A part that takes longer is ended."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach.

    Attributes:
        key: Of the figure.
        limit: The least or the largest value.
        at_least: Which of the two.
        what: For the table.
    """

    key: str
    limit: float
    at_least: bool
    what: str

    def is_met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def text(self) -> str:
        """E.g. ``at least 0.9``."""
        return f"at {'least' if self.at_least else 'most'} {self.limit:g}"


BARS = (
    *(Bar(f"cpu_a16_ratio_m{m}", 0.9, True, f"A16, 4096x4096, {m} tokens") for m in TOKENS),
    *(Bar(f"cpu_a8_ratio_m{m}", 1.5, True, f"A8, 4096x4096, {m} tokens") for m in TOKENS),
    Bar("resident_weight_ratio", 0.32, False, "weights in memory over bf16, 4.3 bits"),
    Bar("load_peak_over_file", 1.3, False, "peak of memory while loading over the file"),
    Bar("demo_a8_over_bf16_speed", 1.0, True, "the demo's network, A8 over bf16"),
    Bar("demo_weight_ratio", 0.32, False, "the demo's weights in memory over bf16"),
)


def measure(options: argparse.Namespace) -> dict:
    """All figures of ``evidence/runtime.json``."""
    found: dict = {**provenance(VERSIONS), "quick": options.quick}
    intervals: dict[str, list[float]] = {}
    broken: list[str] = []
    seconds: dict[str, int] = {}
    for name in PARTS:
        print(f"evidence: {name}", file=sys.stderr)
        began = time.monotonic()
        try:
            figures = _run_part(name, options)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            broken.append(f"{name} could not be measured: {_reason(error)}")
            figures = {}
        seconds[name] = round(time.monotonic() - began)
        intervals |= figures.pop("intervals", {})
        found |= figures
    return found | {"intervals": intervals, "seconds": seconds, "broken_parts": broken}


def _run_part(name: str, options: argparse.Namespace) -> dict:
    out = options.work / f"{name}.json"
    words = [sys.executable, "-m", "demo.runtime_parts", name]
    words += ["--work", str(options.work), "--out", str(out)]
    words += ["--quick"] if options.quick else []
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait(PART_SECONDS)
    finally:
        _end_group(process)
    if status:
        raise subprocess.CalledProcessError(status, words)
    return json.loads(out.read_text(encoding="utf-8"))


def _end_group(process: subprocess.Popen) -> None:
    """End what a part has started and left behind: it would disturb the next one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _reason(error: Exception) -> str:
    """Short, and without the paths of a command line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit status {error.returncode}, see above"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:g} s"
    return f"{type(error).__name__}: {error}"


def faults(found: Mapping) -> list[str]:
    """Which claims these figures do not bear."""
    wrong = list(found["broken_parts"])
    for bar in BARS:
        value = found.get(bar.key)
        if value is None:
            wrong.append(f"{bar.key} was not measured")
        elif not bar.is_met(value):
            wrong.append(f"{bar.key} is {value:.3f}, and is to be {bar.text}")
    for name in TESTS:
        counts = found.get(name)
        if counts is None or not counts["passed"]:
            reasons = "" if counts is None else "; ".join(counts["skipped"])
            wrong.append(f"{name}: none passed{reasons and f' ({reasons})'}")
        elif counts["failed"]:
            wrong.append(f"{name}: {counts['failed']} failed")
    wrong += _gate_faults(found.get("compile_gates", {}))
    gpu = found.get("gpu")
    return wrong + (list(gpu.get("faults", ())) if isinstance(gpu, dict) else [])


def _gate_faults(gates: Mapping) -> list[str]:
    wrong = [
        f"compile_gates: nothing was compiled for sm_{architecture}"
        for architecture in ARCHITECTURES
        if not gates.get(f"sm_{architecture}")
    ]
    for variants in gates.values():
        wrong += [fault for gate in variants.values() for fault in gate["faults"]]
    return wrong


def table_text(found: Mapping) -> str:
    """What is printed."""
    lines = [f"{'':<44}{'median':>8}  {'95 % interval':<17}bar"]
    for bar in BARS:
        value, interval = found.get(bar.key), found["intervals"].get(bar.key)
        told = "not measured" if value is None else f"{value:.3f}"
        sure = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"{bar.what:<44}{told:>8}  {sure:<17}{bar.text}")
    lines += _unbarred_lines(found)
    lines += ["", *_gate_lines(found.get("compile_gates", {})), ""]
    for name in TESTS:
        counts = found.get(name)
        told = "not run"
        if counts is not None:
            told = "{passed} passed ({cases} cases), {failed} failed".format_map(counts)
        lines.append(f"{name.replace('_', ' '):<44}{told}")
    lines += [_memory_line(found), f"GPU: {_gpu_text(found)}", f"seconds: {found['seconds']}"]
    return "\n".join(lines)


def _unbarred_lines(found: Mapping) -> list[str]:
    """What the bars, which are those of one scale a row, do not speak of."""
    lines = []
    for bits, limit in (("a16", 0.9), ("a8", 1.5)):
        for m in TOKENS:
            key = f"cpu_{bits}_groups_ratio_m{m}"
            if key in found:
                low, high = found["intervals"][key]
                what = f"{bits.upper()}, a scale a row and 128 columns, {m}"
                told = f"{low:.3f} to {high:.3f}"
                lines.append(f"{what:<44}{found[key]:>8.3f}  {told:<17}(a row's scale: {limit})")
    return lines


def _gate_lines(gates: Mapping) -> list[str]:
    lines = []
    for name, variants in gates.items():
        for variant, gate in variants.items():
            products = filter(None, (gate["float_products"], gate["integer_products"]))
            lines.append(
                f"{name:<7} {variant:<16}{gate['registers']:>4} registers, "
                f"{gate['spill_instructions']} spills, {gate['loop_conversions']} I2F in loops"
                f"  {', '.join(products)}".rstrip()
            )
    return lines


def _memory_line(found: Mapping) -> str:
    if "load_file_bytes" not in found:
        return "loading: not measured"
    file, packed, overhead = (
        found[f"load_{key}_bytes"] / 1e6 for key in ("file", "packed", "overhead")
    )
    return (
        f"loading a file of {file:.0f} MB: steady state {packed:.0f} MB packed + "
        f"{overhead:.1f} MB overhead, in {found['load_seconds']:.2f} s"
    )


def _gpu_text(found: Mapping) -> str:
    gpu = found.get("gpu", "not measured")
    return gpu if isinstance(gpu, str) else "measured, see the file"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what is claimed of the runtime.")
    parser.add_argument("--out", type=Path, help="default: evidence/runtime.json")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: its own)")
    parser.add_argument("--quick", action="store_true", help="little of everything: no evidence")
    options = parser.parse_args()
    out = options.out or evidence_file("runtime.json", options.quick)
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        found = measure(options)
    wrong = found["faults"] = faults(found)
    write_evidence(out, found)
    print(table_text(found))
    for text in wrong:
        print(f"evidence: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
