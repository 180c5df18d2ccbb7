"""Runs closed-loop episodes and keeps their records; everything goes on where it stopped.

    python -m demo.closed_loop_runs paired     float, make demo's checkpoint, the same through ROS 2
    python -m demo.closed_loop_runs cells      methods x budgets, each checkpoint rolled out
    python -m demo.closed_loop_runs keep       compress what was measured into demo/closed_loop

``scripts/closed_loop.sh`` installs the simulator first. The simulator has an environment of its
own, in which the episodes in process run.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.assemble import SOURCE, assemble
from demo.demo_bags import demo_bags
from qvla_ros.atomic_file import atomic_file
from qvla_ros.cli.main import main as qvla
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.method_cell import CellKey, read_cell
from qvla_ros.evaluate.method_comparison import cell_keys
from qvla_ros.evaluate.rollout_record import RolloutRecord, read_records, write_records
from qvla_ros.quantize.rivals.registry import METHODS, REFERENCE

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "demo" / "closed_loop"
SUITE = "libero_spatial"
BUDGETS = (8.0, 6.0, 4.0, 3.5, 3.0, 2.5, 2.0)
DECIDING = ("ours", "ours-a8", "rtn", "qvla-code", "gptq-clip")
DECIDING_BUDGETS = (4.0, 3.5, 3.0, 2.5)
HALF_A_CHUNK = 4
IN_PROCESS = {"packed": 0, "packed_half_chunks": HALF_A_CHUNK}
"""Name to the executed steps of each chunk (0: all), of make demo's checkpoint."""
ROS_RUNS = {
    "ros_lockstep": (8, 0.0, "packed"),
    "ros_paced": (HALF_A_CHUNK, 0.5, "packed_half_chunks"),
}
"""Name to control steps between images, real-time factor (0: the clock waits), and the run in
process that asks as often."""
ROS_EPISODES = 50
"""Of a run through ROS 2 at least, all tasks together; a run whose clock does not wait has no more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run.

    Attributes:
        work: Folder of what this leaves; an interrupted run goes on there.
        model: Folder of the float model.
        checkpoint: Packed by ``make demo``.
        simulator_python: In whose environment LIBERO is installed.
        tasks: Indices in the suite.
        episodes: Initial states a task, of the runs that decide.
        other_episodes: Initial states a task, of all other cells.
        workers: Processes of the simulation.
    """

    work: Path
    model: Path
    checkpoint: Path
    simulator_python: Path
    tasks: tuple[int, ...]
    episodes: int
    other_episodes: int
    workers: int

    def records(self, name: str) -> Path:
        """Where the records of a run grow."""
        return self.work / f"{name}.jsonl"


def tasks_of(training: Path) -> tuple[int, ...]:
    """The tasks that a policy was last trained on, by the names of its data folders."""
    runs = json.loads(training.read_text(encoding="utf-8"))["runs"]
    prefix = f"{SUITE}_"
    return tuple(sorted(int(name.removeprefix(prefix)) for name in runs[-1]["data_sha256"]))


def simulator_environment() -> dict[str, str]:
    """Variables of a process that simulates: no ROS 2, one thread, software rendering."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("LD_LIBRARY_PATH", None)
    environment.setdefault("MUJOCO_GL", "egl")
    return environment


def run_in_simulator(settings: Settings, words: Sequence[object], name: str) -> None:
    """Run the simulator's Python with these arguments.

    Raises:
        ConfigurationError: It failed; the message begins with ``name``.
    """
    command = [str(word) for word in (settings.simulator_python, *words)]
    done = subprocess.run(command, env=simulator_environment(), cwd=ROOT, check=False)
    _require(done, name)


def roll_out(
    settings: Settings, policy: Path, name: str, episodes: int, open_loop_steps: int = 0
) -> None:
    """Run a policy in process, from initial states 0 to ``episodes - 1`` of each task."""
    words: list[object] = ["-m", "qvla_ros.cli.main", "rollout", "--suite", SUITE]
    words += ["--tasks", ",".join(map(str, settings.tasks)), "--episodes", episodes]
    words += ["--workers", settings.workers, "--open-loop-steps", open_loop_steps]
    words += ["--policy", policy, "--out", settings.records(name)]
    run_in_simulator(settings, words, name)


def through_ros(
    settings: Settings, name: str, camera_every: int, factor: float, episodes: int
) -> None:
    """Run make demo's checkpoint through policy node, adapter and simulation node."""
    arguments = {
        "checkpoint": settings.checkpoint,
        "out": settings.records(name),
        "suite": SUITE,
        "tasks": list(settings.tasks),
        "episodes": episodes,
        "camera_every": camera_every,
        "real_time_factor": float(factor),
        "simulator_python": settings.simulator_python,
    }
    launch = [sys.executable, str(ROOT / "scripts" / "ros2_launch.py")]
    launch += [str(ROOT / "launch" / "closed_loop.launch.py")]
    launch += [f"{key}:={value}" for key, value in arguments.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    done = subprocess.run(launch, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    _require(done, name)


def run_paired(settings: Settings) -> None:
    """The float policy, the packed one, and the packed one through ROS 2: the same episodes.

    The packed one also in process with half of each chunk, as often as the faster of the runs
    through ROS 2 asks. With a clock that does not wait an episode takes its own time, so there they
    are fewer.
    """
    roll_out(settings, settings.model, "float", settings.episodes)
    for name, steps in IN_PROCESS.items():
        roll_out(settings, settings.checkpoint, name, settings.episodes, steps)
    for name, (camera_every, factor, _) in ROS_RUNS.items():
        fewer = min(settings.episodes, -(-ROS_EPISODES // len(settings.tasks)))
        episodes = fewer if factor else settings.episodes
        through_ros(settings, name, camera_every, factor, episodes)


def run_cells(
    settings: Settings,
    methods: Sequence[str],
    budgets: Sequence[float],
    bag_tasks: Collection[int] | None = None,
) -> None:
    """Quantize by every method at every budget, and roll each checkpoint out.

    First all cells shortly, then those that decide with all episodes: whenever it is stopped,
    there is a table.

    Args:
        settings: What is run.
        methods: Names in the registry.
        budgets: Average bits a weight.
        bag_tasks: Calibrate with, and measure the error on, the demo's bags of these tasks only.
    """
    _compare(settings, methods, budgets, bag_tasks)
    keys = cell_keys(methods, budgets, budgets)
    for key in keys:
        _roll_out_cell(settings, key, settings.other_episodes)
    for key in keys:
        if key.method == REFERENCE or (key.method in DECIDING and key.bits in DECIDING_BUDGETS):
            _roll_out_cell(settings, key, settings.episodes)


def _compare(
    settings: Settings,
    methods: Sequence[str],
    budgets: Sequence[float],
    bag_tasks: Collection[int] | None,
) -> None:
    bits = [f"{bits:g}" for bits in budgets]
    words = ["compare", settings.model, *demo_bags("calibration", bag_tasks)]
    words += ["--heldout", *demo_bags("heldout", bag_tasks), "--out", settings.work / "compare"]
    words += ["--methods", *methods, "--budgets", *bits, "--ablation-budgets", *bits]
    words += ["--jobs", settings.workers, "--keep-checkpoints"]
    if qvla([str(word) for word in words]) != 0:
        raise ConfigurationError("qvla compare failed, see above")


def _roll_out_cell(settings: Settings, key: CellKey, episodes: int) -> None:
    folder = settings.work / "compare"
    if read_cell(folder / "cells" / f"{key.stem}.json").unmet:
        return
    checkpoint = folder / f"{key.stem}.qvla.safetensors"
    if not checkpoint.exists():
        raise ConfigurationError(
            f"{checkpoint} is missing although its cell is finished: remove {folder}"
        )
    roll_out(settings, checkpoint, f"cells/{key.stem}", episodes)


def keep(settings: Settings, kept: Path = KEPT) -> list[str]:
    """Compress what was measured into ``kept``; the names of the files.

    Raises:
        ConfigurationError: A kept file of the same policy has episodes that would be lost.
    """
    kept.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(settings.work.glob("*.jsonl")) + sorted(
        settings.work.glob("cells/*.jsonl")
    ):
        name = f"{path.relative_to(settings.work)}.xz"
        records = read_records(path)
        keep_records(kept / name, records)
        names.append(name)
    cells = {}
    for path in sorted((settings.work / "cells").glob("*.jsonl")):
        cell = read_cell(settings.work / "compare" / "cells" / f"{path.stem}.json")
        cells[path.stem] = {
            "method": cell.method,
            "bits": cell.bits,
            "file_bytes": cell.file_bytes,
            "average_bits_per_weight": cell.average_bits_per_weight,
            "heldout_action_error": cell.mean_l1,
            "heldout_action_rms": cell.rms,
            "heldout_worst_frames": float(np.percentile(cell.frame_errors, 95)),
            "heldout_gripper_flips": cell.gripper_flips,
            "heldout_hidden_error": cell.hidden_error,
            "checkpoint_sha256": cell.checkpoint_sha256,
        }
    if cells:
        with atomic_file(kept / "cells.json") as file:
            file.write(f"{json.dumps(cells, indent=1, sort_keys=True)}\n".encode())
    return names


def keep_records(path: Path, records: Sequence[RolloutRecord]) -> None:
    """Write a run's records, compressed.

    Raises:
        ConfigurationError: ``path`` keeps an episode of this policy that is not among them.
    """
    policies, keys = {one.policy_sha256 for one in records}, {one.key for one in records}
    lost = [o for o in read_records(path) if o.policy_sha256 in policies and o.key not in keys]
    if lost:
        raise ConfigurationError(
            f"{path} holds {len(lost)} episodes of this policy that are not among those to be "
            "kept: run these too, or remove the file"
        )
    write_records(path, records)


def _require(done: subprocess.CompletedProcess, name: str) -> None:
    if done.returncode:
        raise ConfigurationError(
            f"{name}: the run ended with status {done.returncode}, see above; it can be resumed"
        )


def methods_of(names: Iterable[str] | None) -> list[str]:
    """The named methods; without names ours, the reference, every rival, and ours with int8."""
    rivals = [name for name, entry in METHODS.items() if not entry.ablation]
    return list(names) if names else [*rivals, "ours-a8"]


def settings_of(options: argparse.Namespace) -> Settings:
    """From the command line; the float model is assembled if it is not there."""
    (options.work / "cells").mkdir(parents=True, exist_ok=True)
    return Settings(
        options.work,
        assemble(SOURCE, ROOT / "demo_output" / "model"),
        options.checkpoint,
        options.simulator_python,
        tuple(options.tasks or tasks_of(ROOT / "demo" / "training.json")),
        options.episodes,
        min(options.other_episodes, options.episodes),
        options.workers,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this program and the evidence share."""
    demo_output = ROOT / "demo_output"
    simulator = ROOT / ".venv-libero" / "bin" / "python"
    parser.add_argument("--work", type=Path, default=demo_output / "closed_loop")
    parser.add_argument("--checkpoint", type=Path, default=demo_output / "policy.qvla.safetensors")
    parser.add_argument("--kept", type=Path, default=KEPT, help="compressed records")
    parser.add_argument("--simulator-python", type=Path, default=simulator)
    parser.add_argument("--tasks", type=int, nargs="+", help="default: those trained on")
    parser.add_argument("--episodes", type=int, default=50, help="a task, where it decides (50)")
    parser.add_argument("--other-episodes", type=int, default=20, help="a task, elsewhere (20)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="of the cells; default: all")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, metavar="BITS")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run closed-loop episodes and keep the records.")
    parser.add_argument("what", choices=("paired", "cells", "keep"))
    add_arguments(parser)
    options = parser.parse_args()
    settings = settings_of(options)
    if options.what == "paired":
        run_paired(settings)
    elif options.what == "cells":
        run_cells(settings, methods_of(options.methods), options.budgets)
    else:
        print("\n".join(keep(settings, options.kept)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
