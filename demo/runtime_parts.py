"""The parts of ``make evidence-runtime``; each runs in a process of its own and writes its figures.

python -m demo.runtime_parts kernels --work FOLDER --out figures.json
"""

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.assemble import SOURCE, assemble
from demo.demo_bags import demo_bags
from demo.provenance import ROOT

TOKENS = (256, 351, 608)
"""Rows of the input that the bars speak of."""

SQUARE = (4096, 4096)
DEMO_SHARE = 0.317
"""Size of the demo's checkpoint, as a share of the bf16 weights of the network that runs."""

TESTS = {
    "interpreter_tests": ["test/kernels/test_triton.py"],
    "dequantization_tests": [
        "test/kernels/test_kernels.py",
        "-k",
        "bit_for_bit or very_weight",
    ],
    "kernels_against_reference_tests": [
        "test/kernels",
        "-k",
        "what_the_reference_gives and not interpreted",
    ],
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        repeats: Turns of a kernel.
        inferences: Turns of the demo's network.
        load_gib: Least size of the file that is loaded.
        frames: Calibration frames of the demo's checkpoint.
        probes: Backward passes of each frame.
    """

    repeats: int
    inferences: int
    load_gib: float
    frames: int
    probes: int


FULL = Effort(repeats=41, inferences=100, load_gib=1.0, frames=32, probes=8)
QUICK = Effort(repeats=6, inferences=8, load_gib=0.0625, frames=2, probes=1)


def kernels(effort: Effort, _: Path) -> dict[str, object]:
    """Our products against bf16 ones whose weight oneDNN has laid out, in turns."""
    from qvla_ros.evaluate.kernel_bench import BASELINE, bench_kernels

    bench = bench_kernels([SQUARE], TOKENS, effort.repeats)
    found: dict[str, object] = {}
    intervals: dict[str, list[float]] = {}
    for times in bench.times:
        for name, speed in times.speed.items():
            if name != BASELINE:
                key = f"cpu_{name}_ratio_m{times.tokens}"
                found[key] = round(speed, 4)
                intervals[key] = [round(bound, 4) for bound in times.speed_interval[name]]
    return found | {
        "resident_weight_ratio": round(max(bench.resident_weight_ratio.values()), 4),
        "resident_weight_ratio_by_packing": bench.resident_weight_ratio,
        "average_bits_per_weight": bench.average_bits_per_weight,
        "scratch_bytes": bench.scratch_bytes,
        "kernels": bench.kernels,
        "kernel_threads": bench.threads,
        "kernel_turns": bench.repeats,
        "intervals": intervals,
    }


def loading(effort: Effort, work: Path) -> dict[str, object]:
    """A generated checkpoint, loaded by a process that then reads its own high-water mark."""
    from qvla_ros.evaluate.load_bench import measure_load, write_synthetic_checkpoint

    path = work / "synthetic.qvla.safetensors"
    write_synthetic_checkpoint(path, round(effort.load_gib * 2**30))
    try:
        result = measure_load(path)
    finally:
        path.unlink()
    return {
        "load_peak_over_file": round(result.peak_over_file, 4),
        "load_steady_over_file": round(result.steady_over_file, 4),
        "load_file_bytes": result.file_bytes,
        "load_seconds": round(result.seconds, 3),
        "load_packed_bytes": result.layer_bytes,
        "load_overhead_bytes": result.steady_bytes - result.layer_bytes,
    }


def gates(_: Effort, __: Path) -> dict[str, object]:
    """The Triton kernels as machine code for GPUs that need not be here."""
    sys.path.append(str(Path(sys.prefix) / "opt" / "triton"))  # where scripts/setup.sh puts it
    os.environ.setdefault(
        "TRITON_DEFAULT_FP_FUSION", "1"
    )  # as it is; it warns of a change to come
    import triton

    from qvla_ros.evaluate.compile_gates import ARCHITECTURES, VARIANTS, compile_gate

    return {
        "triton": triton.__version__,
        "compile_gates": {
            f"sm_{architecture}": {
                variant: compile_gate(architecture, variant).to_json() for variant in VARIANTS
            }
            for architecture in ARCHITECTURES
        },
    }


def tests(_: Effort, work: Path) -> dict[str, object]:
    """How many tests of each kind pass."""
    return {name: _test_counts(words, work / f"{name}.xml") for name, words in TESTS.items()}


def _test_counts(words: list[str], report: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml"]
    command += [f"--junitxml={report}", *words]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise ValueError(f"pytest wrote no results: {' '.join(words)}")
    count = {
        name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
    }
    reasons = sorted({one.get("message", "") for one in suite.iter("skipped")})
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    cases = [int(p.get("value", "0")) for p in suite.iter("property") if p.get("name") == "cases"]
    return {
        "passed": passed,
        "failed": failed,
        "skipped": reasons,
        "cases": sum(cases) or passed,  # of tests that hold many cases and say how many
    }


def demo(effort: Effort, work: Path) -> dict[str, object]:
    """The demo's network with int8 inputs in all layers, against bf16, in turns."""
    from qvla_ros.evaluate.model_bench import BASELINE, bench_model

    folder = assemble(SOURCE, ROOT / "demo_output" / "model")
    checkpoint = work / "demo_a8.qvla.safetensors"
    facts = _quantize(folder, checkpoint, effort)
    bench = bench_model(folder, checkpoint, repeats=effort.inferences)
    memory = {name: sum(kinds.values()) for name, kinds in bench.memory_bytes.items()}
    return {
        "demo_a8_over_bf16_speed": round(bench.speed["packed"], 4),
        "demo_a16_over_bf16_speed": round(bench.speed["packed_a16"], 4),
        "demo_weight_ratio": round(memory["packed"] / memory[BASELINE], 4),
        "demo_weight_bytes": {name: memory[name] for name in (BASELINE, "packed")},
        "demo_milliseconds": {name: round(ms, 3) for name, ms in bench.milliseconds.items()},
        "demo_threads": bench.threads,
        "demo_turns": bench.repeats,
        "demo_checkpoint": facts,
        "intervals": {
            f"demo_{bits}_over_bf16_speed": [round(b, 4) for b in bench.speed_interval[name]]
            for bits, name in (("a8", "packed"), ("a16", "packed_a16"))
        },
    }


def _quantize(folder: Path, checkpoint: Path, effort: Effort) -> dict[str, object]:
    """Made anew by the command that a user calls, and what it says of the result."""
    import torch

    from qvla_ros.policy.policy import float_policy

    whole = sum(float_policy(folder, dtype=torch.bfloat16).memory_bytes().values())
    words = [sys.executable, "-m", "qvla_ros.cli.main", "quantize", str(folder)]
    words += map(str, demo_bags("calibration"))
    words += ["--max-bytes", str(round(DEMO_SHARE * whole)), "--activations", "8"]
    words += ["--frames", str(effort.frames), "--probes", str(effort.probes)]
    words += ["--heldout", *map(str, demo_bags("heldout"))]
    words += ["--heldout-frames", str(effort.frames), "--out", str(checkpoint), "--json"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(done.stdout)
    kept = ("file_bytes", "average_bits_per_weight", "layers_with_int8_inputs", "quality")
    return {name: facts[name] for name in kept}


def gpu(_: Effort, work: Path) -> dict[str, object]:
    """What a GPU shows, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": "not measured: there is no CUDA device"}
    out = work / "gpu.json"
    words = [sys.executable, "-m", "qvla_ros.cli.main", "bench", "gpu", "--json", str(out)]
    done = subprocess.run(words, cwd=ROOT, stdout=sys.stderr, check=False)
    if not out.exists():
        raise ValueError(f"qvla bench gpu wrote nothing, exit status {done.returncode}")
    return {"gpu": json.loads(out.read_text(encoding="utf-8"))}


PARTS: dict[str, Callable[[Effort, Path], dict[str, object]]] = {
    "kernels": kernels,
    "demo": demo,
    "loading": loading,
    "gates": gates,
    "tests": tests,
    "gpu": gpu,
}
"""What is measured, in this order: the times first, while the processor is cool."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure one part of the runtime's evidence.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True, help="folder for files")
    parser.add_argument("--out", type=Path, required=True, help="figures to write")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: its own)")
    options = parser.parse_args()
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures = PARTS[options.part](QUICK if options.quick else FULL, options.work)
    options.out.write_text(json.dumps(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
