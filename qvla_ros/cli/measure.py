"""``qvla measure``: how much the action depends on every row at every bit width."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.estimates import announce_measuring, estimated, require_float_model
from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    load_model_of,
    open_model_of,
    read_observations,
)
from qvla_ros.cli.progress import Progress
from qvla_ros.cli.run_config import add_config_argument, beside, save_config
from qvla_ros.cli.work_folder import add_work_arguments, use_threads, work_folder, work_path
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.models.processing import Processing
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.observation import Observation
    from qvla_ros.quantize.action_metric import ActionMetric, GripperMargin
    from qvla_ros.quantize.calibration import CalibrationSet
    from qvla_ros.quantize.journal import Journal
    from qvla_ros.quantize.sensitivity import MeasureSettings, SensitivityTable

_EXACT_BYTES = 4 + 8  # single rows are measured in float64, for which the network is copied
_TABLE = "table.safetensors"  # in the work folder

HELP = "measure the action-space sensitivity of every row at every bit width"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_model_arguments(parser)
    add_bag_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="sensitivity table to write")
    add_measure_arguments(parser)
    parser.add_argument(
        "--exact-rows",
        type=int,
        default=0,
        metavar="N",
        help="also quantize N random rows one at a time, and print the rank correlation between "
        "the score and the action change that the network really shows",
    )
    add_work_arguments(parser)
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare on what, and by which metric, sensitivity is measured."""
    group = parser.add_argument_group("measurement")
    group.add_argument("--frames", type=int, default=64, help="calibration frames (default 64)")
    group.add_argument("--probes", type=int, default=8, help="backward passes a frame (default 8)")
    group.add_argument("--seed", type=int, default=0, help="of the probes (default 0)")
    group.add_argument(
        "--gripper-margin",
        type=float,
        metavar="SOFTNESS",
        help="weigh the gripper by how near it is to the other decision, in normalised units",
    )
    group.add_argument(
        "--step-weights", type=_numbers, metavar="W,...", help="one for each step of the chunk"
    )
    group.add_argument(
        "--dimension-weights", type=_numbers, metavar="W,...", help="one for each action dimension"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the table, and check it where asked to."""
    from qvla_ros.quantize.pipeline import calibrate
    from qvla_ros.quantize.storage import save_table

    use_threads(arguments)
    if arguments.exact_rows:
        require_float_model(arguments.model, _EXACT_BYTES)
    model = load_model_of(arguments) if arguments.exact_rows else open_model_of(arguments)
    metric = action_metric(arguments, model.processing)
    observations = read_observations(arguments, model.processing.settings.robot)
    if not arguments.exact_rows and observations:
        tell_measuring(arguments, model, observations[0])
    calibration = calibrate(model, observations, arguments.frames)
    with work_folder(arguments, model) as journal:
        if arguments.exact_rows:
            table, exact = _checked_table(arguments, model, calibration, metric)
        else:
            table, exact = measured_table(arguments, model, calibration, metric, journal), {}
        save_table(table, arguments.out)
        save_config(arguments, arguments.out)
    facts: dict[str, object] = {
        "table": str(arguments.out),
        "layers": len(table.layers),
        "rows": sum(layer.rows for layer in table.layers),
        "frames": arguments.frames,
        "probes": table.probes,
    }
    print_facts(facts | exact, arguments.json)
    return 0


def tell_measuring(
    arguments: argparse.Namespace, model: "LoadedModel", observation: "Observation"
) -> None:
    """What measuring observations like this one will take, unless they are measured already."""
    work = work_path(arguments)
    if not (work / _TABLE).exists():
        probes = _settings(arguments).probes
        announce_measuring(model, observation, arguments.frames, probes, work)


def measured_table(
    arguments: argparse.Namespace,
    model: "LoadedModel",
    calibration: "CalibrationSet",
    metric: "ActionMetric",
    journal: "Journal",
) -> "SensitivityTable":
    """The table, measured here or already kept in the work folder."""
    from qvla_ros.quantize.estimate import (
        Workload,
        expected_tokens,
        flop_rate,
        measure_estimate,
    )
    from qvla_ros.quantize.pipeline import measure_model
    from qvla_ros.quantize.storage import load_table, save_table

    kept = journal.folder / _TABLE
    if kept.exists():
        return load_table(kept)
    settings, network = _settings(arguments), model.network
    tokens = expected_tokens(network, calibration.frames[0], arguments.frames)
    work = Workload.of(network, tokens, arguments.frames)
    estimate = measure_estimate(work, settings.probes, flop_rate())
    stages = [stage.name for stage in reversed(network.stages())]
    with (
        estimated("measuring", estimate, journal, stages) as clock,
        Progress(len(stages), "measuring sensitivity") as progress,
    ):
        told = clock.before(progress.set)
        table = measure_model(model, calibration, metric, settings, told, journal)
    save_table(table, kept)
    return table


def _checked_table(
    arguments: argparse.Namespace,
    model: "LoadedModel",
    calibration: "CalibrationSet",
    metric: "ActionMetric",
) -> "tuple[SensitivityTable, dict[str, object]]":
    """The table, and how it ranks rows that are quantized one at a time, on the same frames.

    The rounded rows are needed, so an interrupted sweep begins anew.
    """
    from qvla_ros.quantize.pipeline import measure_model
    from qvla_ros.quantize.score_check import (
        DrawnRows,
        RowChoice,
        as_text,
        measure_rows,
        rank_correlations,
    )
    from qvla_ros.quantize.storage import save_exact

    choice = RowChoice(arguments.exact_rows, seed=arguments.seed)
    drawn = DrawnRows(choice.draw(model.network.linear_layers()))
    with Progress(len(model.network.stages()), "measuring sensitivity") as progress:
        table = measure_model(
            model,
            calibration,
            metric,
            _settings(arguments),
            progress.set,
            on_layer=drawn.keep,
        )
    with Progress(arguments.exact_rows * len(choice.widths), "quantizing single rows") as progress:
        rows = measure_rows(
            model.network, calibration, metric, drawn.rounded, choice, progress.set
        )
    path = beside(arguments.out, "exact.json")
    save_exact(rows, path)
    strata = rank_correlations(rows, {"score": table.scores})
    if not arguments.json:
        print(as_text(strata))
    overall = {str(one.bits): one.spearman["score"] for one in strata if one.part == "all"}
    return table, {"exact": str(path), "spearman_by_width": overall}


def _settings(arguments: argparse.Namespace) -> "MeasureSettings":
    from qvla_ros.quantize.sensitivity import MeasureSettings

    if arguments.probes < 1:
        raise ConfigurationError(f"--probes must be at least 1, not {arguments.probes}")
    return MeasureSettings(probes=arguments.probes, seed=arguments.seed)


def action_metric(arguments: argparse.Namespace, processing: "Processing") -> "ActionMetric":
    """The metric that the arguments describe.

    Raises:
        ConfigurationError: There are too many or too few weights, or they make no sense.
    """
    from qvla_ros.quantize.action_metric import ActionMetric

    robot = processing.settings.robot
    steps = _as_many("--step-weights", arguments.step_weights, robot.horizon)
    dimensions = _as_many("--dimension-weights", arguments.dimension_weights, robot.action_dim)
    return ActionMetric.weighted(steps, dimensions, _gripper(arguments, processing))


def _gripper(arguments: argparse.Namespace, processing: "Processing") -> "GripperMargin | None":
    from qvla_ros.evaluate.fidelity import Grippers
    from qvla_ros.quantize.action_metric import GripperMargin

    if arguments.gripper_margin is None:
        return None
    grippers = Grippers.of(processing)
    if not grippers.dimensions:
        raise ConfigurationError("--gripper-margin: the robot has no action named 'gripper'")
    if max(grippers.middles) - min(grippers.middles) > 1e-3:
        raise ConfigurationError("--gripper-margin: the grippers open at different values")
    return GripperMargin(grippers.dimensions, grippers.middles[0], arguments.gripper_margin)


def _as_many(option: str, weights: "tuple[float, ...] | None", count: int) -> "tuple[float, ...]":
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise ConfigurationError(f"{option} has {len(weights)} weights, the model needs {count}")
    return weights


def _numbers(text: str) -> tuple[float, ...]:
    """Parse ``1,0.5`` for argparse."""
    return tuple(float(part) for part in text.split(","))
