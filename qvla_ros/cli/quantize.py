"""``qvla quantize``: write one packed mixed-bit checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.estimates import announce_quantizing, estimated, quantize_estimate_of
from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.measure import (
    action_metric,
    add_measure_arguments,
    measured_table,
    tell_measuring,
)
from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    open_model_of,
    read_observations,
)
from qvla_ros.cli.plan import add_budget_arguments, allocated, budget_of
from qvla_ros.cli.progress import Progress
from qvla_ros.cli.run_config import add_config_argument, beside, save_config
from qvla_ros.cli.work_folder import add_work_arguments, use_threads, work_folder, work_path
from qvla_ros.errors import BudgetError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qvla_ros.cli.estimates import StageClock
    from qvla_ros.models.network import ModelInputs
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.observation import Observation
    from qvla_ros.quantize.action_metric import ActionMetric
    from qvla_ros.quantize.bit_plan import BitPlan
    from qvla_ros.quantize.calibration import CalibrationSet
    from qvla_ros.quantize.journal import Journal
    from qvla_ros.quantize.pipeline import WrittenCheckpoint
    from qvla_ros.quantize.sensitivity import SensitivityTable

HELP = "write a packed checkpoint from calibration bags, by a plan or a table if there is one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_model_arguments(parser)
    add_bag_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    source = parser.add_argument_group("what is measured and planned already, on the same bags")
    source.add_argument("--table", type=Path, help="from qvla measure; give a budget too")
    source.add_argument("--plan", type=Path, help="from qvla plan; it has its budget")
    add_measure_arguments(parser)
    add_budget_arguments(parser)
    quality = parser.add_argument_group("the action error that the checkpoint tells of itself")
    quality.add_argument(
        "--heldout",
        type=Path,
        nargs="+",
        metavar="BAG",
        help="bags that it is measured on (default: the calibration frames, and called so)",
    )
    quality.add_argument(
        "--heldout-frames", type=int, default=64, help="evenly over these bags (default 64)"
    )
    add_work_arguments(parser)
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and plan where that is not done, quantize, measure the result, write it."""
    from qvla_ros.quantize.pipeline import calibrate

    _require_one_source(arguments)
    use_threads(arguments)
    model = open_model_of(arguments)
    metric = action_metric(arguments, model.processing)
    observations = read_observations(arguments, model.processing.settings.robot)
    if observations:
        _tell(arguments, model, observations[0])
    calibration = calibrate(model, observations, arguments.frames)
    frames, kind = _quality_frames(arguments, model, calibration)
    with work_folder(arguments, model) as journal:
        plan = _planned(arguments, model, calibration, metric, journal)
        written = _write(arguments, model, plan, calibration, journal, (frames, kind))
        save_config(arguments, arguments.out)
    facts = {
        "checkpoint": str(written.path),
        "file_bytes": written.file_bytes,
        "share_of_bf16": round(written.file_bytes / model.bf16_bytes, 4),
        "average_bits_per_weight": round(plan.average_bits_per_weight, 4),
        "layers_with_int8_inputs": len(plan.activation_bits),
        "sha256": written.manifest.sha256,
        "quality": dict(written.manifest.quality),
    }
    print_facts(facts, arguments.json)
    return 0


def _require_one_source(arguments: argparse.Namespace) -> None:
    """Refuse what contradicts itself before anything is read."""
    if arguments.plan is None:
        budget_of(arguments)
        return
    limits = (arguments.bits, arguments.max_bytes, arguments.max_latency_ms)
    if arguments.table is not None or limits != (None, None, None):
        raise ConfigurationError("--plan has its budget: give no other one, and no --table")
    if arguments.activations not in (None, "auto"):
        raise ConfigurationError(
            "--plan has its activations: only --activations auto goes with it"
        )


def _tell(arguments: argparse.Namespace, model: "LoadedModel", observation: "Observation") -> None:
    """What each step will take on observations like this one, before anything long begins."""
    from qvla_ros.quantize.storage import load_plan

    if arguments.plan is None and arguments.table is None:
        tell_measuring(arguments, model, observation)
    budget = budget_of(arguments) if arguments.plan is None else load_plan(arguments.plan).budget
    announce_quantizing(model, observation, arguments.frames, budget, work_path(arguments))


def _planned(
    arguments: argparse.Namespace,
    model: "LoadedModel",
    calibration: "CalibrationSet",
    metric: "ActionMetric",
    journal: "Journal",
) -> "BitPlan":
    """The plan: given, kept in the work folder, or made here."""
    from qvla_ros.quantize.storage import load_plan, save_plan

    kept = journal.folder / "plan.safetensors"
    if kept.exists():
        return load_plan(kept)
    plan = _given_plan(arguments, model)
    if plan is not None and arguments.activations != "auto":
        return plan
    if plan is None:
        table = measured_table(arguments, model, calibration, metric, journal)
        plan = _plan_kept(arguments, model, table, journal)
    if arguments.activations == "auto":
        plan = _with_chosen_activations(model, plan, calibration, metric)
    save_plan(plan, kept)
    return plan


def _with_chosen_activations(
    model: "LoadedModel", plan: "BitPlan", calibration: "CalibrationSet", metric: "ActionMetric"
) -> "BitPlan":
    from qvla_ros.quantize.activation_choice import activation_errors, plan_activations

    with Progress(len(plan.layers), "rounding the inputs of single layers") as progress:
        errors = activation_errors(model.network, calibration, metric, progress.set)
    with Progress(len(model.network.stages()), "measuring what weights cost") as progress:
        return plan_activations(model.network, plan, calibration, metric, errors, progress.set)


def _given_plan(arguments: argparse.Namespace, model: "LoadedModel") -> "BitPlan | None":
    from qvla_ros.quantize.storage import load_plan, load_table

    if arguments.plan is not None:
        return load_plan(arguments.plan)
    if arguments.table is not None:
        return allocated(arguments, load_table(arguments.table), model)
    return None


def _plan_kept(
    arguments: argparse.Namespace,
    model: "LoadedModel",
    table: "SensitivityTable",
    journal: "Journal",
) -> "BitPlan":
    """Plan, with the table kept beside the result for other budgets, and for a report."""
    from qvla_ros.quantize.storage import save_table

    kept = beside(arguments.out, "table.safetensors")
    save_table(table, kept)
    try:
        return allocated(arguments, table, model)
    except BudgetError as error:
        journal.clear()
        raise BudgetError(
            f"{error}; what was measured is kept: go on with --table {kept}"
        ) from error


def _write(
    arguments: argparse.Namespace,
    model: "LoadedModel",
    plan: "BitPlan",
    calibration: "CalibrationSet",
    journal: "Journal",
    quality_frames: "tuple[Sequence[ModelInputs], str]",
) -> "WrittenCheckpoint":
    """Quantize, weigh the packed candidate on the frames, and write it with what it weighs."""
    from qvla_ros.evaluate.deployed_error import deployed_error, quality
    from qvla_ros.quantize.pipeline import write_weighed
    from qvla_ros.quantize.storage import save_plan

    frames, kind = quality_frames
    estimate = quantize_estimate_of(model, plan, len(calibration.frames))
    stages = [stage.name for stage in model.network.stages()]
    with estimated("quantizing", estimate, journal, stages) as clock:
        candidate = _candidate(model, plan, calibration, journal, clock)
        with Progress(len(frames), "comparing actions") as progress:
            error = deployed_error(candidate, model, frames, progress.set)
        figures = quality(error, kind, len(frames))
        save_plan(plan, beside(arguments.out, "plan.safetensors"))
        return write_weighed(candidate, figures, plan.budget, arguments.out)


def _candidate(
    model: "LoadedModel",
    plan: "BitPlan",
    calibration: "CalibrationSet",
    journal: "Journal",
    clock: "StageClock",
) -> Path:
    """The packed file in the work folder; its layers are not held any longer."""
    from qvla_ros.quantize.pipeline import quantize_model, write_quantized

    candidate = journal.folder / "candidate.qvla.safetensors"
    with Progress(len(model.network.stages()), "quantizing") as progress:
        told = clock.before(progress.set)
        quantized = quantize_model(model, plan, calibration, told, journal)
    write_quantized(model, quantized, plan.budget, candidate)
    return candidate


def _quality_frames(
    arguments: argparse.Namespace, model: "LoadedModel", calibration: "CalibrationSet"
) -> "tuple[Sequence[ModelInputs], str]":
    from qvla_ros.evaluate.deployed_error import spread

    if arguments.heldout is None:
        return calibration.frames, "calibration"
    if arguments.heldout_frames < 1:
        raise ConfigurationError("--heldout-frames must be at least 1")
    heldout = argparse.Namespace(**{**vars(arguments), "bags": arguments.heldout})
    observations = read_observations(heldout, model.processing.settings.robot)
    chosen = spread(observations, arguments.heldout_frames)
    return [model.processing.prepare(one) for one in chosen], "heldout"
