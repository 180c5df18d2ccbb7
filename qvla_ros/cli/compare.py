"""``qvla compare``: every method of quantization at the same bytes, on held-out frames."""

import argparse
import json
import multiprocessing
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.cli.estimates import require_float_model
from qvla_ros.cli.model_arguments import (
    add_bag_arguments,
    add_model_arguments,
    load_model_of,
    read_episodes,
    read_observations,
)
from qvla_ros.cli.progress import Progress
from qvla_ros.cli.run_config import add_config_argument, save_config
from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.evaluate.method_cell import CellKey
    from qvla_ros.evaluate.method_comparison import HeldoutFrames, MethodComparison
    from qvla_ros.evaluate.method_summary import Judgement
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.rivals.contest import Contest

HELP = "compare all methods of quantization at equal bytes, on held-out bags"

BUDGETS = (8.0, 6.0, 4.0, 3.5, 3.0, 2.5, 2.0)
ABLATION_BUDGETS = (4.0, 3.0, 2.0)
_POLL_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_model_arguments(parser)
    add_bag_arguments(parser)
    parser.add_argument(
        "--heldout", type=Path, nargs="+", required=True, metavar="BAG", help="not calibrated on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder; a finished cell is kept")
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        default=BUDGETS,
        metavar="BITS",
        help="average bits a weight of plain round-to-nearest, whose file size is everybody's "
        f"limit (default {' '.join(f'{bits:g}' for bits in BUDGETS)})",
    )
    parser.add_argument(
        "--ablation-budgets",
        type=float,
        nargs="*",
        default=ABLATION_BUDGETS,
        metavar="BITS",
        help="those at which the ablations of ours run "
        f"(default {' '.join(f'{bits:g}' for bits in ABLATION_BUDGETS)})",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="some of the methods; an unknown name is answered with all (default: all)",
    )
    parser.add_argument("--frames", type=int, default=64, help="calibration frames (default 64)")
    parser.add_argument(
        "--heldout-frames", type=int, default=128, help="evenly over the bags (default 128)"
    )
    parser.add_argument("--probes", type=int, default=8, help="backward passes a frame (8)")
    parser.add_argument("--seed", type=int, default=0, help="of probes and bootstrap")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, of one thread each if several (default 1)"
    )
    parser.add_argument(
        "--success",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORDS",
        help="roll-outs of kept checkpoints (qvla rollout), one file a checkpoint",
    )
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="leave every packed file in the folder"
    )
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, then write the table, the figure, the page and ``compare.json``."""
    began = time.monotonic()
    _check(arguments)
    comparison, keys, heldout = _begin(arguments)
    if arguments.jobs > 1:
        _run_jobs(arguments, comparison, keys)
    with Progress(len(keys), "comparing methods") as progress:
        comparison.run(keys, lambda cell: progress.advance(note=cell.key.stem))
    judged, facts = _judged(arguments, comparison, keys, heldout)
    facts["seconds"] = f"{time.monotonic() - began:.0f}"
    _write(arguments.out, judged, facts)
    save_config(arguments, arguments.out / "compare")
    return _print(arguments, judged)


def _check(arguments: argparse.Namespace) -> None:
    from qvla_ros.quantize.rivals.registry import METHODS

    unknown = [name for name in arguments.methods or () if name not in METHODS]
    if unknown:
        raise ConfigurationError(f"--methods {unknown[0]!r} must be of {', '.join(METHODS)}")
    if arguments.jobs < 1:
        raise ConfigurationError(f"--jobs must be at least 1, not {arguments.jobs}")
    shared = {bag.resolve() for bag in arguments.heldout} & {
        bag.resolve() for bag in arguments.bags
    }
    if shared:
        raise ConfigurationError(
            f"{shared.pop()} is calibrated on and cannot be held out: name another bag"
        )


def _begin(
    arguments: argparse.Namespace,
) -> "tuple[MethodComparison, list[CellKey], HeldoutFrames]":
    from qvla_ros.evaluate.method_comparison import MethodComparison, cell_keys
    from qvla_ros.quantize.rivals.registry import METHODS

    require_float_model(arguments.model)
    model = load_model_of(arguments)
    heldout = _heldout(arguments, model)
    contest = _contest(arguments, model)
    comparison = MethodComparison(contest, heldout, arguments.out, arguments.keep_checkpoints)
    methods = arguments.methods or list(METHODS)
    keys = cell_keys(methods, arguments.budgets, arguments.ablation_budgets)
    return comparison, keys, heldout


def _heldout(arguments: argparse.Namespace, model: "LoadedModel") -> "HeldoutFrames":
    from qvla_ros.evaluate.method_comparison import heldout_frames

    named = argparse.Namespace(**{**vars(arguments), "bags": arguments.heldout})
    episodes = read_episodes(named, model.processing.settings.robot, with_actions=False)
    return heldout_frames(episodes, model.processing, arguments.heldout_frames)


def _contest(arguments: argparse.Namespace, model: "LoadedModel") -> "Contest":
    """The measurements that all methods share, made now or read from the folder."""
    from qvla_ros.quantize.action_metric import ActionMetric
    from qvla_ros.quantize.calibration import calibration_set
    from qvla_ros.quantize.journal import Journal
    from qvla_ros.quantize.rivals.contest import Contest
    from qvla_ros.quantize.rivals.evidence import Evidence
    from qvla_ros.quantize.sensitivity import MeasureSettings

    robot = model.processing.settings.robot
    observations = read_observations(arguments, robot)
    calibration = calibration_set(observations, model.processing, arguments.frames)
    folder = arguments.out / "evidence"
    Journal(
        folder,
        {
            "model": model.fingerprint,
            "calibration frames": calibration.fingerprint,
            "probes": arguments.probes,
            "seed": arguments.seed,
        },
    )
    evidence = Evidence(folder)
    if not evidence.finished:
        with Progress(1, "measuring what all methods share") as progress:
            evidence.measure(
                model.network,
                calibration,
                ActionMetric.uniform(robot.horizon, robot.action_dim),
                MeasureSettings(probes=arguments.probes, seed=arguments.seed),
                model.fingerprint,
                progress.set,
            )
    return Contest(model, calibration, evidence, arguments.out)


def _run_jobs(
    arguments: argparse.Namespace, comparison: "MethodComparison", keys: "list[CellKey]"
) -> None:
    """Share the cells among processes of one thread."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = [
        context.Process(target=_share, args=(arguments, index), daemon=True)
        for index in range(arguments.jobs)
    ]
    for worker in workers:
        worker.start()
    with Progress(len(keys), f"comparing methods in {arguments.jobs} processes") as progress:
        while True:
            working = [worker for worker in workers if worker.is_alive()]
            progress.set(sum(comparison.cell(key) is not None for key in keys), len(keys))
            if not working or any(worker.exitcode for worker in workers):
                break
            working[0].join(_POLL_S)
    if any(worker.exitcode for worker in workers):
        raise ConfigurationError(
            "a process that shared the comparison failed, see above; finished cells are kept"
        )


def _share(arguments: argparse.Namespace, index: int) -> None:
    """What one of several processes does: every so manieth cell."""
    import torch

    torch.set_num_threads(1)
    comparison, keys, _ = _begin(arguments)
    comparison.run(keys[index :: arguments.jobs], lambda cell: None)


def _judged(
    arguments: argparse.Namespace,
    comparison: "MethodComparison",
    keys: "list[CellKey]",
    heldout: "HeldoutFrames",
) -> "tuple[list[Judgement], dict[str, str]]":
    from qvla_ros.evaluate.machine import describe_machine
    from qvla_ros.evaluate.method_summary import judge, success_rates
    from qvla_ros.evaluate.rollout_record import read_records

    cells = [cell for cell in map(comparison.cell, keys) if cell is not None]
    records = {str(path): read_records(path) for path in arguments.success}
    rates = success_rates(records, cells)
    facts = {key: str(value) for key, value in comparison.purpose.items()}
    facts["calibration"] = f"{arguments.frames} frames of {len(arguments.bags)} bags"
    facts["held out"] = f"{heldout.count} frames of {len(arguments.heldout)} bags"
    facts["date"] = date.today().isoformat()
    facts |= describe_machine()
    return judge(cells, heldout.blocks, arguments.seed, rates), facts


def _write(folder: Path, judged: "list[Judgement]", facts: dict[str, str]) -> None:
    from qvla_ros.evaluate.comparison_report import write_comparison, write_figure
    from qvla_ros.evaluate.method_summary import table_text

    with atomic_file(folder / "compare.json") as file:
        content = {"facts": facts, "cells": [one.to_json() for one in judged]}
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
    with atomic_file(folder / "compare.txt") as file:
        file.write(f"{table_text(judged)}\n".encode())
    write_figure(judged, folder / "compare")
    write_comparison(judged, facts, folder / "compare.html")


def _print(arguments: argparse.Namespace, judged: "list[Judgement]") -> int:
    from qvla_ros.evaluate.method_summary import table_text

    if arguments.json:
        print((arguments.out / "compare.json").read_text(encoding="utf-8"), end="")
    else:
        print(table_text(judged))
    return 0
