"""``qvla quantize``: write one packed mixed-bit checkpoint."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.measure import measure
from qvla_ros.cli.model_arguments import add_model_arguments, load_model_of
from qvla_ros.cli.progress import Progress
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.bit_plan import BitPlan

HELP = "write a packed checkpoint, by a plan or straight from calibration bags"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_model_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--plan", type=Path, help="bit plan from qvla plan")
    source.add_argument(
        "--bags", type=Path, nargs="+", metavar="BAG", help="measure and plan here, from these"
    )
    parser.add_argument("--bits", type=float, help="average bits a weight; with --bags")
    parser.add_argument("--max-bytes", type=int, help="size of the whole file; with --bags")
    parser.add_argument("--frames", type=int, default=32, help="calibration frames; with --bags")
    parser.add_argument("--probes", type=int, default=4, help="probes a frame; with --bags")
    parser.add_argument("--seed", type=int, default=0, help="of the probes; with --bags")
    parser.add_argument(
        "--rounding",
        choices=("clip", "nearest"),
        default="clip",
        help="clip-searched scales, or plain round-to-nearest as a baseline",
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Quantize and write."""
    from qvla_ros.quantize.pipeline import ROUNDINGS, write_quantized
    from qvla_ros.quantize.storage import load_plan

    model = load_model_of(arguments)
    if arguments.plan is not None:
        if arguments.bits is not None or arguments.max_bytes is not None:
            raise ConfigurationError(
                "the plan has its budget: --bits and --max-bytes go with --bags"
            )
        plan = load_plan(arguments.plan)
    else:
        plan = _measured_plan(arguments, model)
    with Progress(len(plan.layers), "packing layers") as progress:
        written = write_quantized(
            model, plan, arguments.out, ROUNDINGS[arguments.rounding], on_progress=progress.set
        )
    facts = {
        "checkpoint": str(written.path),
        "file_bytes": written.file_bytes,
        "share_of_bf16": round(written.file_bytes / model.bf16_bytes, 4),
        "average_bits_per_weight": round(plan.average_bits_per_weight, 4),
        "sha256": written.manifest.sha256,
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(f"{key:<26} {value}" for key, value in facts.items()))
    return 0


def _measured_plan(arguments: argparse.Namespace, model: "LoadedModel") -> "BitPlan":
    from qvla_ros.quantize.allocation import allocate_bits
    from qvla_ros.quantize.bit_plan import BitBudget
    from qvla_ros.quantize.pipeline import fixed_bytes

    budget = BitBudget(arguments.bits, arguments.max_bytes)
    table = measure(model, arguments.bags, arguments.frames, arguments.probes, arguments.seed)
    return allocate_bits(table, budget, fixed_bytes(model))
