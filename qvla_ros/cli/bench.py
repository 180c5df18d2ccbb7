"""``qvla bench``: how fast the kernels, a whole network and loading are on this machine."""

import argparse
import json
import subprocess
import tempfile
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.kernel_bench import KernelTimes

HELP = "measure the kernels, a whole network, or loading, against bf16 on this machine"
_MOST_GIB = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--device", choices=["cpu"], default="cpu", help="for a GPU see the kind gpu"
    )
    parser.add_argument("--threads", type=_positive, help="PyTorch's threads; default: its own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    kernels = kinds.add_parser("kernels", help="one layer at a time, against PyTorch's products")
    kernels.add_argument(
        "--shapes",
        default="language,vision",
        help="language, vision, demo, or ROWSxCOLUMNS, separated by commas",
    )
    kernels.add_argument("--tokens", help="rows of the input, separated by commas")
    kernels.add_argument("--repeats", type=_positive, default=7)
    kernels.add_argument("--plot", type=Path, metavar="FILE", help="draw the speeds (.svg, .png)")
    model = kinds.add_parser("model", help="a checkpoint, against its float model in bf16")
    model.add_argument("model", type=Path, help="model folder")
    model.add_argument("checkpoint", type=Path, help="packed checkpoint")
    model.add_argument("--unnorm-key", help="data set whose statistics are used")
    model.add_argument("--repeats", type=_positive, default=20)
    load = kinds.add_parser("load", help="time and peak of memory of loading")
    load.add_argument("checkpoint", type=Path, nargs="?", help="default: a synthetic one")
    load.add_argument(
        "--gib", type=_size, default=1.0, help="size of the synthetic checkpoint (1)"
    )
    table = kinds.add_parser(
        "table", help="time a row at each width, for qvla plan --max-latency-ms"
    )
    table.add_argument("model", type=Path, help="model folder")
    table.add_argument("--unnorm-key", help="data set whose statistics are used")
    table.add_argument("--out", type=Path, required=True, help="latency table to write")
    table.add_argument("--repeats", type=_positive, default=15)
    gates = kinds.add_parser("gates", help="compile the Triton kernels for GPUs that are not here")
    gpu = kinds.add_parser("gpu", help="everything that is to be shown on a GPU, in one table")
    gpu.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for --tiny only"
    )
    gpu.add_argument("--tiny", action="store_true", help="a dry run of every part on tiny sizes")
    gpu.add_argument("--minutes", type=float, default=7.0, help="no part is begun after so many")
    gpu.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS)
    for kind in (kernels, model, load, table, gates):  # so that options may follow the kind too
        kind.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS)
        kind.add_argument("--threads", type=_positive, default=argparse.SUPPRESS)
        kind.add_argument("--device", choices=["cpu"], default=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the JSON."""
    import torch

    from qvla_ros.evaluate.machine import describe_machine

    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {arguments.json}: there is no such folder")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    kinds = {
        "kernels": _kernels,
        "model": _model,
        "load": _load,
        "table": _table,
        "gates": _gates,
        "gpu": _gpu,
    }
    result = kinds[arguments.kind](arguments)
    report = {
        "kind": arguments.kind,
        "device": arguments.device,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        **result,
    }
    if arguments.json is not None:
        with atomic_file(arguments.json) as file:
            file.write(f"{json.dumps(report, indent=2)}\n".encode())
    return 1 if result.get("faults") else 0


def _kernels(arguments: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.evaluate.figure_style import require_matplotlib
    from qvla_ros.evaluate.kernel_bench import TOKENS, bench_kernels

    tokens = TOKENS if arguments.tokens is None else _integers(arguments.tokens)
    if arguments.plot is not None:
        require_matplotlib()  # before minutes are spent
    print("speed relative to prepacked bf16 (oneDNN); more than 1 is faster")
    result = bench_kernels(_shapes(arguments.shapes), tokens, arguments.repeats, _print_times)
    for name, reason in result.kernels.items():
        ratio = result.resident_weight_ratio[name]
        print(f"{name}: at most {ratio:.3f}x the bytes of bf16 weights; {reason}")
    for name, what in result.rivals.items():
        print(f"{name}: {what}")
    print(f"scratch memory of all layers: {result.scratch_bytes / 1e6:.1f} MB")
    if arguments.plot is not None:
        from qvla_ros.evaluate.kernel_figure import plot_speeds

        plot_speeds(result.times).savefig(arguments.plot, dpi=160, facecolor="white")
    return result.to_json()


def _print_times(times: "KernelTimes") -> None:
    speeds = "  ".join(f"{name} {speed:.2f}" for name, speed in times.speed.items())
    layer = f"{times.rows}x{times.columns}"
    print(f"{layer:>12}, {times.tokens:>3} tokens: {speeds}", flush=True)


def _model(arguments: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.evaluate.model_bench import bench_model

    result = bench_model(
        arguments.model, arguments.checkpoint, arguments.unnorm_key, arguments.repeats
    )
    for name, milliseconds in result.milliseconds.items():
        bytes_ = sum(result.memory_bytes[name].values())
        speed = result.speed[name]
        print(f"{name:<12} {milliseconds:8.2f} ms  {speed:5.2f}x  {bytes_ / 1e6:8.1f} MB weights")
    return result.to_json()


def _load(arguments: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.evaluate.load_bench import measure_load, write_synthetic_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = arguments.checkpoint
        if path is None:
            path = Path(folder) / "synthetic.qvla.safetensors"
            write_synthetic_checkpoint(path, round(arguments.gib * 2**30))
        try:
            result = measure_load(path)
        except subprocess.CalledProcessError as error:
            raise ConfigurationError(f"{path} could not be loaded, see above") from error
    print(
        f"{result.file_bytes / 1e6:.0f} MB in {result.seconds:.2f} s; peak "
        f"{result.peak_over_file:.3f}x, steady {result.steady_over_file:.3f}x the file"
    )
    return result.to_json()


def _table(arguments: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.cli.progress import Progress
    from qvla_ros.evaluate.latency_bench import measure_latency_table
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.model_bench import synthetic_observation
    from qvla_ros.policy.policy import default_compute_dtype, float_policy
    from qvla_ros.quantize.latency_table import save_latency_table

    policy = float_policy(arguments.model, arguments.unnorm_key, dtype=default_compute_dtype())
    frame = policy.processing.prepare(synthetic_observation(policy))
    with Progress(1, "timing layers") as progress:
        table = measure_latency_table(
            policy.network,
            frame,
            describe_machine()["processor"],
            arguments.repeats,
            progress.set,
        )
    save_latency_table(table, arguments.out)
    print(f"{len(table.layers)} entries, {table.other_ms:.2f} ms outside of them: {arguments.out}")
    return {"table": str(arguments.out), "entries": len(table.layers)}


def _gates(_: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.evaluate.compile_gates import ARCHITECTURES, VARIANTS, compile_gate

    gates, faults = [], []
    for architecture in ARCHITECTURES:
        for variant in VARIANTS:
            gate = compile_gate(architecture, variant)
            products = ", ".join(filter(None, (gate.float_products, gate.integer_products)))
            print(
                f"sm_{architecture} {variant:<12} {gate.registers:>3} registers, "
                f"{gate.spill_instructions} spills, {gate.shared_bytes:>5} B shared; {products}",
                flush=True,
            )
            gates.append(gate.to_json())
            faults += gate.faults()
    for fault in faults:
        print(fault)
    return {"gates": gates, "faults": faults}


def _gpu(arguments: argparse.Namespace) -> dict[str, object]:
    from qvla_ros.evaluate.gpu_bench import Plan, bench_gpu

    plan = Plan.of(arguments.device, arguments.tiny, arguments.minutes)
    bench = bench_gpu(plan, partial(print, flush=True))
    for name, value in bench.gpu.items():
        print(f"{name}: {value}")
    for line in (*bench.bars(), *bench.faults, f"{bench.seconds:.0f} s"):
        print(line)
    return bench.to_json()


def _shapes(text: str) -> list[tuple[int, int]]:
    from qvla_ros.evaluate.kernel_bench import SHAPES

    shapes: list[tuple[int, int]] = []
    for word in text.split(","):
        if word in SHAPES:
            shapes.extend(SHAPES[word])
            continue
        rows, _, columns = word.partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) * int(columns)):
            raise ConfigurationError(
                f"--shapes: {word!r} is neither one of {', '.join(SHAPES)} nor like 4096x4096"
            )
        shapes.append((int(rows), int(columns)))
    return shapes


def _integers(text: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise ConfigurationError(f"--tokens: {text!r} is not like 1,16,256")
    return [int(word) for word in text.split(",")]


def _size(text: str) -> float:
    value = float(text)
    if not 0 < value < _MOST_GIB:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {_MOST_GIB}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
