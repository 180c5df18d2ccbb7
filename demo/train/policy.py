"""Make a demo policy from nothing: ``python -m demo.train.policy small|large``.

Collects demonstrations in LIBERO, trains, and assembles the model folder. Everything goes on where
it was interrupted. ``scripts/closed_loop.sh`` installs the simulator first.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.assemble import SOURCE, assemble
from demo.closed_loop_runs import SUITE, simulator_environment
from demo.train.train import train, training_options
from qvla_ros.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "demo_output"
TASKS = {"small": (0, 1, 2, 3, 7), "large": (0, 2)}
"""Any but 4 and 6, which the expert fails: a bowl in the drawer, and one next to the box."""

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("--steps", "6000", "--batch", "48"),
    "large": (
        *("--language", "smollm2", "--begin-with", str(ROOT / "demo"), "--keep-every", "50"),
        *("--steps", "1100", "--batch", "20", "--pretrained-share", "0.4"),
    ),
}
"""Size to how it is trained. The large one begins with the small one's towers."""


def demonstrations_of(data: Path, task: int) -> Path:
    """Folder of a task's demonstrations; ``tasks_of`` reads the task off its name."""
    return data / f"{SUITE}_{task}"


def collect(python: Path, data: Path, tasks: Sequence[int], episodes: int, jobs: int) -> None:
    """Demonstrations of each task, several tasks at once.

    Raises:
        ConfigurationError: A collection failed; the message names its log.
    """
    data.mkdir(parents=True, exist_ok=True)

    def one(task: int) -> None:
        folder = demonstrations_of(data, task)
        words = ["--suite", SUITE, "--task", task, "--episodes", episodes, "--out", folder]
        command = [str(python), "-m", "demo.train.collect", *map(str, words)]
        log = folder.with_suffix(".log")
        with log.open("ab") as errors:
            done = subprocess.run(
                command, env=simulator_environment(), cwd=ROOT, stderr=errors, check=False
            )
        if done.returncode:
            raise ConfigurationError(f"collecting task {task} ended with an error, see {log}")
        print(f"task {task}: {episodes} demonstrations in {folder}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, tasks))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other options go to the training, see python -m demo.train.train --help.",
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument(
        "--tasks", type=int, nargs="+", help="of the suite (0 1 2 3 7; large: 0 2)"
    )
    parser.add_argument("--episodes", type=int, default=120, help="demonstrations a task (120)")
    parser.add_argument("--jobs", type=int, default=2, help="tasks collected at once (2)")
    parser.add_argument("--data", type=Path, default=OUTPUT / "demonstrations")
    parser.add_argument("--only-collect", action="store_true")
    parser.add_argument(
        "--simulator-python", type=Path, default=ROOT / ".venv-libero" / "bin" / "python"
    )
    options, further = parser.parse_known_args()
    tasks = options.tasks or TASKS[options.size]
    folders = [demonstrations_of(options.data, task) for task in tasks]
    small, work = options.size == "small", OUTPUT / f"training_{options.size}"
    words = ["--data", *map(str, folders), "--demonstrations", str(options.episodes)]
    words += ["--samples", str(OUTPUT / "samples"), "--work", str(work)]
    words += ["--out", str(SOURCE if small else work / "model"), *SIZES[options.size]]
    training = training_options([*words, *further])  # a wrong word is told before the collecting
    try:
        collect(options.simulator_python, options.data, tasks, options.episodes, options.jobs)
        if options.only_collect:
            return 0
        train(training)
        print(assemble(training.out, OUTPUT / ("model" if small else f"model_{options.size}")))
    except ConfigurationError as error:
        print(f"policy: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
