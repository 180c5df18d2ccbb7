"""``qvla plan``: a bit width for every row, from a sensitivity table and a budget."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.estimates import announce, quantize_estimate_of
from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.run_config import add_config_argument, save_config
from qvla_ros.errors import BudgetError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qvla_ros.models.linear_layer import LinearLayer
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.allocation import AllocationSettings
    from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
    from qvla_ros.quantize.sensitivity import SensitivityTable

HELP = "choose a bit width for every row within a budget"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="from qvla measure")
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder: counts what is not quantized (--max-bytes), and lets pruned rows "
        "remove the columns behind them",
    )
    parser.add_argument("--unnorm-key", help="of the model")
    parser.add_argument("--robot", help="of the model")
    add_budget_arguments(parser)
    parser.add_argument(
        "--uniform", type=int, metavar="BITS", help="the same width everywhere, as a baseline"
    )
    parser.add_argument("--out", type=Path, help="plan to write")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the budget, and how it may be spent."""
    group = parser.add_argument_group("budget", "average bits; or bytes, milliseconds, or both")
    group.add_argument("--bits", type=float, help="average bits a weight (codes only)")
    group.add_argument("--max-bytes", type=int, help="size of the whole file")
    group.add_argument("--max-latency-ms", type=float, help="of one inference; by a table")
    group.add_argument(
        "--latency-table", type=Path, metavar="JSON", help="measured times, for --max-latency-ms"
    )
    group.add_argument(
        "--widths", type=_integers, metavar="B,...", help="that may occur (default: all)"
    )
    group.add_argument(
        "--tile-rows", type=int, default=1, help="rows of a width are a multiple (default 1)"
    )
    group.add_argument(
        "--activations",
        choices=("16", "8", "auto"),
        help="bits of the inputs of all layers: as they are (default), int8 token by token, or "
        "int8 where it adds little error (qvla quantize only: it needs the frames)",
    )
    group.add_argument(
        "--method",
        choices=("optimal", "qvla-paper", "qvla-code"),
        default="optimal",
        help="the exact knapsack (default), or a greedy one",
    )


def run(arguments: argparse.Namespace) -> int:
    """Allocate, print and write the plan."""
    from qvla_ros.models.registry import open_model
    from qvla_ros.quantize.bit_plan import uniform_plan
    from qvla_ros.quantize.storage import load_table, save_plan

    if (arguments.out is None) != arguments.dry_run:
        raise ConfigurationError("give --out, or --dry-run to write nothing")
    if arguments.activations == "auto":
        raise ConfigurationError("--activations auto needs the frames: give it to qvla quantize")
    if arguments.uniform is None:
        budget_of(arguments)  # refused before anything is read
    table = load_table(arguments.table)
    model = None
    if arguments.model is not None:
        model = open_model(arguments.model, arguments.unnorm_key, arguments.robot)
    if arguments.uniform is not None:
        plan = uniform_plan(table, arguments.uniform)
    else:
        plan = allocated(arguments, table, model)
    if model is not None and arguments.dry_run:
        announce("quantizing by this plan", quantize_estimate_of(model, plan))
    if arguments.out is not None:
        save_plan(plan, arguments.out)
        save_config(arguments, arguments.out)
    print_facts(plan_facts(plan), arguments.json)
    return 0


def budget_of(arguments: argparse.Namespace) -> "BitBudget":
    """The budget that the arguments name.

    Raises:
        BudgetError: There is none, or its limits contradict each other.
        ConfigurationError: A budget of milliseconds without a latency table.
    """
    from qvla_ros.quantize.bit_plan import BitBudget

    if arguments.max_latency_ms is not None and arguments.latency_table is None:
        raise ConfigurationError("--max-latency-ms needs measured times: give --latency-table")
    limits = (arguments.bits, arguments.max_bytes, arguments.max_latency_ms)
    if limits == (None, None, None):
        raise BudgetError("give a budget: --bits, --max-bytes or --max-latency-ms")
    return BitBudget(*limits)


def allocated(
    arguments: argparse.Namespace, table: "SensitivityTable", model: "LoadedModel | None"
) -> "BitPlan":
    """The plan that the arguments ask for.

    Raises:
        BudgetError: The budget cannot be met.
        ConfigurationError: A budget of bytes without a model, or a table of another model.
    """
    from qvla_ros.quantize.allocation import allocate_bits
    from qvla_ros.quantize.pipeline import plan_bits

    budget, settings = budget_of(arguments), _allocation_settings(arguments, table.layers)
    if model is not None:
        return plan_bits(model, table, budget, settings)
    if budget.max_bytes is not None:
        raise ConfigurationError("--max-bytes counts the whole file: name the model with --model")
    return allocate_bits(table, budget, settings=settings)


def _allocation_settings(
    arguments: argparse.Namespace, layers: "Sequence[LinearLayer]"
) -> "AllocationSettings":
    from qvla_ros.quantize.allocation import AllocationSettings
    from qvla_ros.quantize.latency_table import load_latency_table
    from qvla_ros.quantize.widths import WIDTHS

    latency = None
    if arguments.latency_table is not None:
        latency = load_latency_table(arguments.latency_table)
    int8 = arguments.activations == "8"
    return AllocationSettings(
        widths=arguments.widths or WIDTHS,
        method=arguments.method,
        tile_rows=arguments.tile_rows,
        latency=latency,
        activation_bits=dict.fromkeys([one.name for one in layers], 8) if int8 else {},
    )


def plan_facts(plan: "BitPlan") -> dict[str, object]:
    """What a plan says, as JSON."""
    bits, weights = dict[str, int](), dict[str, int]()
    for layer in plan.layers:
        spent = int(plan.row_bits[layer.name].long().sum()) * plan.stored_columns(layer)
        bits[layer.part] = bits.get(layer.part, 0) + spent
        weights[layer.part] = weights.get(layer.part, 0) + layer.weights
    return {
        "average_bits_per_weight": round(plan.average_bits_per_weight, 4),
        "rows_by_width": {str(width): rows for width, rows in plan.bit_histogram.items()},
        "average_bits_by_part": {part: round(bits[part] / weights[part], 3) for part in bits},
        "removed_columns": sum(
            layer.columns - plan.stored_columns(layer) for layer in plan.layers
        ),
        "layers_with_int8_inputs": len(plan.activation_bits),
        "predicted_error": _finite(plan.predicted_error),
        "optimality_gap": _finite(plan.optimality_gap),
    }


def _finite(value: float) -> float | None:
    return None if value != value else value


def _integers(text: str) -> tuple[int, ...]:
    """Parse ``0,2,4`` for argparse."""
    return tuple(int(part) for part in text.split(","))
