"""``qvla plan``: a bit width for every row, from a sensitivity table and a budget."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.quantize.bit_plan import BitPlan
    from qvla_ros.quantize.sensitivity import SensitivityTable

HELP = "choose a bit width for every row within a budget"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("table", type=Path, help="sensitivity table from qvla measure")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--bits", type=float, help="average bits a weight (codes only)")
    budget.add_argument("--max-bytes", type=int, help="size of the whole file; needs --model")
    budget.add_argument(
        "--uniform", type=int, metavar="BITS", help="the same width everywhere, as a baseline"
    )
    parser.add_argument("--model", type=Path, help="model folder, for what is not quantized")
    parser.add_argument("--out", type=Path, help="plan to write; without it nothing is written")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Allocate, print and write the plan."""
    from qvla_ros.quantize.bit_plan import uniform_plan
    from qvla_ros.quantize.storage import load_table, save_plan

    table = load_table(arguments.table)
    if arguments.uniform is not None:
        plan = uniform_plan(table, arguments.uniform)
    else:
        plan = _allocated(arguments, table)
    if arguments.out is not None:
        save_plan(plan, arguments.out)
    facts = plan_facts(plan)
    print(json.dumps(facts, indent=2) if arguments.json else _as_text(facts))
    return 0


def _allocated(arguments: argparse.Namespace, table: "SensitivityTable") -> "BitPlan":
    from qvla_ros.quantize.allocation import allocate_bits
    from qvla_ros.quantize.bit_plan import BitBudget

    budget = BitBudget(arguments.bits, arguments.max_bytes)
    if budget.max_bytes is None:
        return allocate_bits(table, budget)
    if arguments.model is None:
        raise ConfigurationError("--max-bytes counts the whole file: name the model with --model")
    from qvla_ros.models.registry import load_model
    from qvla_ros.quantize.pipeline import fixed_bytes

    return allocate_bits(table, budget, fixed_bytes(load_model(arguments.model)))


def plan_facts(plan: "BitPlan") -> dict[str, object]:
    """What a plan says, as JSON."""
    parts: dict[str, list[int]] = {}
    for layer in plan.layers:
        bits, weights = parts.setdefault(layer.part, [0, 0])
        spent = int(plan.row_bits[layer.name].sum()) * layer.columns
        parts[layer.part] = [bits + spent, weights + layer.weights]
    return {
        "average_bits_per_weight": round(plan.average_bits_per_weight, 4),
        "rows_by_width": {str(bits): rows for bits, rows in plan.bit_histogram.items()},
        "average_bits_by_part": {part: round(b / w, 3) for part, (b, w) in parts.items()},
        "predicted_error": None
        if plan.predicted_error != plan.predicted_error
        else plan.predicted_error,
    }


def _as_text(facts: dict[str, object]) -> str:
    return "\n".join(f"{key:<26} {value}" for key, value in facts.items())
