"""``qvla measure``: how much the action depends on every row at every bit width."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    load_model_of,
    read_observations,
)
from qvla_ros.cli.progress import Progress

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.exact import RowMeasurement
    from qvla_ros.quantize.sensitivity import SensitivityTable

HELP = "measure the action-space sensitivity of every row at every bit width"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_model_arguments(parser)
    add_bag_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="sensitivity table to write")
    parser.add_argument("--frames", type=int, default=32, help="calibration frames (default 32)")
    parser.add_argument(
        "--probes", type=int, default=4, help="backward passes a frame (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the probes")
    parser.add_argument(
        "--exact-rows",
        type=int,
        default=0,
        metavar="N",
        help="also quantize N random rows one at a time and print the rank correlation between "
        "the score and the action change that the network really shows",
    )
    parser.add_argument(
        "--exact-frames", type=int, default=4, help="frames of the exact measurement (default 4)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the table, and check it where asked to."""
    from qvla_ros.quantize.storage import save_table

    model = load_model_of(arguments)
    table = measure(model, arguments.bags, arguments.frames, arguments.probes, arguments.seed)
    save_table(table, arguments.out)
    facts: dict[str, object] = {
        "table": str(arguments.out),
        "layers": len(table.layers),
        "rows": sum(layer.rows for layer in table.layers),
        "frames": arguments.frames,
        "probes": table.probes,
    }
    if arguments.exact_rows:
        facts["exact"] = _check_exactly(arguments, model, table)
    print(json.dumps(facts, indent=2) if arguments.json else _as_text(facts))
    return 0


def measure(
    model: "LoadedModel", bags: list[Path], frames: int, probes: int, seed: int
) -> "SensitivityTable":
    """Score all rows on frames of the bags, with a progress line."""
    from qvla_ros.quantize.action_metric import ActionMetric
    from qvla_ros.quantize.calibration import calibration_set
    from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity

    calibration = calibration_set(read_observations(bags), model.processing, frames)
    robot = model.processing.settings.robot
    with Progress(frames, "measuring sensitivity") as progress:
        return measure_sensitivity(
            model.network,
            calibration,
            ActionMetric.uniform(robot.horizon, robot.action_dim),
            MeasureSettings(probes=probes, seed=seed),
            model.fingerprint,
            progress.set,
        )


def _check_exactly(
    arguments: argparse.Namespace, model: "LoadedModel", table: "SensitivityTable"
) -> dict[str, object]:
    from qvla_ros.quantize.action_metric import ActionMetric
    from qvla_ros.quantize.calibration import calibration_set
    from qvla_ros.quantize.exact import RowChoice, measure_rows_exactly
    from qvla_ros.quantize.rounding import round_clipped

    observations = read_observations(arguments.bags)
    frames = calibration_set(observations, model.processing, arguments.exact_frames)
    robot = model.processing.settings.robot
    metric = ActionMetric.uniform(robot.horizon, robot.action_dim)
    choice = RowChoice(arguments.exact_rows, seed=arguments.seed)
    with Progress(arguments.exact_rows, "quantizing single rows") as progress:
        measured = measure_rows_exactly(
            model.network, frames, table, metric, round_clipped, choice, progress.set
        )
    return {
        "rows": arguments.exact_rows,
        "frames": arguments.exact_frames,
        "spearman_by_width": {str(bits): _rank(measured, bits) for bits in choice.widths},
        "spearman_by_part": {
            part: {
                str(bits): _rank([m for m in measured if m.layer.startswith(part)], bits)
                for bits in choice.widths
            }
            for part in ("vision_backbone", "language_model")
        },
    }


def _rank(measured: "list[RowMeasurement]", bits: int) -> float | None:
    import numpy as np

    from qvla_ros.quantize.exact import spearman

    chosen = [one for one in measured if one.bits == bits]
    if len(chosen) < 3:
        return None
    scores = np.array([one.score for one in chosen])
    return round(spearman(scores, np.array([one.exact for one in chosen])), 4)


def _as_text(facts: dict[str, object], indent: str = "") -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<18} {value}")
    return "\n".join(lines)
