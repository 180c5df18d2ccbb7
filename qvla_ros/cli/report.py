"""``qvla report``: one page about what a quantization did."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.facts import print_facts
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.quantization_report import QuantizationResults

HELP = "write a page: bits by layer, scores, predicted against measured error, worst layers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="checkpoints, plans, sensitivity tables, exact measurements; or folders with such",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="page to write")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read what there is, and write the page."""
    from qvla_ros.evaluate.figure_style import require_matplotlib
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.quantization_report import QuantizationResults, quantization_report

    require_matplotlib()
    results = QuantizationResults()
    for path in arguments.paths:
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if _readable(one)]
            known = [_add(results, one) for one in inside]
            for one, taken in zip(inside, known, strict=True):
                if not taken:
                    print(f"{one}: not a result of qvla, left out", file=sys.stderr)
            if not any(known):
                raise ConfigurationError(f"{path} holds no result of qvla")
        elif not _add(results, path):
            raise ConfigurationError(
                f"{path} is no checkpoint, plan, sensitivity table or exact measurement"
            )
    machine = describe_machine()
    facts = {name: machine[name] for name in ("processor", "cores", "torch")}
    quantization_report(results, facts).write(arguments.out)
    print_facts(
        {
            "report": str(arguments.out),
            "checkpoints": list(results.checkpoints),
            "plans": list(results.plans),
            "tables": list(results.tables),
            "exact_measurements": list(results.exact),
        },
        arguments.json,
    )
    return 0


def _readable(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".safetensors", ".exact.json"))


def _add(results: "QuantizationResults", path: Path) -> bool:
    """Read a file into the results; whether it is one."""
    from qvla_ros.checkpoint.reader import read_manifest
    from qvla_ros.evaluate.quantization_report import WeighedCheckpoint
    from qvla_ros.quantize.storage import kind_of, load_exact, load_plan, load_table

    kind = kind_of(path)
    if kind == "checkpoint":
        weighed = WeighedCheckpoint(read_manifest(path), path.stat().st_size)
        results.checkpoints[path.name] = weighed
    elif kind == "plan":
        results.plans[path.name] = load_plan(path)
    elif kind == "sensitivity":
        results.tables[path.name] = load_table(path)
    elif kind == "exact rows":
        results.exact[path.name] = load_exact(path)
    return kind is not None
