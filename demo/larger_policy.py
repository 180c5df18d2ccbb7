"""Does it hold for a larger network? ``make closed-loop-larger``, after ``make policy SIZE=large``.

Rolls out the larger policy in float, and its checkpoints of some methods and budgets, calibrated
with the demo's bags of the tasks that it was trained on. Everything goes on where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demo.closed_loop_runs import (
    ROOT,
    Settings,
    add_arguments,
    keep,
    roll_out,
    run_cells,
    settings_of,
    tasks_of,
)
from demo.demo_bags import demo_bags
from demo.outliers import outliers
from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

MODEL = ROOT / "demo_output" / "model_large"
TRAINING = ROOT / "demo_output" / "training_large" / "training.json"
FOLDER = "larger"
OUTLIERS = "outliers.json"
METHODS = ("bf16", "ours", "gptq-clip", "rtn", "smoothquant")
BUDGETS = (4.0, 3.0)


def larger(options: argparse.Namespace) -> Settings:
    """From the command line.

    Raises:
        ConfigurationError: The policy is not trained.
    """
    if not (MODEL.exists() and TRAINING.exists()):
        raise ConfigurationError(f"{MODEL} is missing: make policy SIZE=large trains it, in hours")
    tasks = tuple(options.tasks or tasks_of(TRAINING))
    work, every = options.work / FOLDER, options.episodes
    (work / "cells").mkdir(parents=True, exist_ok=True)
    return replace(settings_of(options), work=work, model=MODEL, tasks=tasks, other_episodes=every)


def run(
    options: argparse.Namespace,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[float] = BUDGETS,
) -> None:
    """Roll out the float policy, then each checkpoint; interrupted, keep what there is.

    Raises:
        ConfigurationError: The policy is not trained, or a step failed.
    """
    settings = larger(options)
    roll_out(settings, settings.model, "float", settings.episodes)
    try:
        run_cells(settings, methods, budgets, bag_tasks=settings.tasks)
    finally:
        _keep(settings, options.kept)


def _keep(settings: Settings, kept: Path) -> None:
    """Compress the episodes into ``kept/larger``, beside what is known of the policy."""
    keep(settings, kept / FOLDER)
    bags = demo_bags("heldout", settings.tasks)
    small = ROOT / "demo_output" / "model"
    found = {name: outliers(one, bags) for name, one in (("larger", MODEL), ("demo", small))}
    with atomic_file(kept / FOLDER / OUTLIERS) as file:
        file.write(f"{json.dumps(found, indent=1)}\n".encode())
    with atomic_file(kept / FOLDER / TRAINING.name) as file:
        runs = json.loads(TRAINING.read_text(encoding="utf-8"))["runs"]
        own = [one for one in runs if one.get("language") == runs[-1]["language"]]
        file.write(f"{json.dumps({'runs': own})}\n".encode())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(methods=METHODS, budgets=BUDGETS)
    options = parser.parse_args()
    try:
        run(options, options.methods, options.budgets)
    except ConfigurationError as error:
        print(f"closed-loop-larger: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
