"""Record the demo's bags with the scripted expert: ``python -m demo.train.make_bags``.

They are for calibration and for held-out action errors, so their scenes must be neither those of
the training data nor LIBERO's official initial states: the seeds here are used nowhere else, and
the scenes are drawn at random. Images are taken at every step, 20 a second.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.train.expert_run import ExpertRun
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.libero import (
    CONTROL_PERIOD_NS,
    LiberoTask,
    mujoco_version,
)
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.observation import Observation

SUITE = "libero_spatial"
NOISE = 0.1
START_NS = 1_000_000_000  # simulated time of the first image
MAX_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class PlannedBag:
    """One bag.

    Attributes:
        name: Folder.
        task: Index of the task in the suite.
        seed: With the number of the attempt it fixes scene and noise.
    """

    name: str
    task: int
    seed: int


BAGS = (
    PlannedBag("calibration_0", 0, 1000),
    PlannedBag("calibration_1", 2, 1001),
    PlannedBag("calibration_2", 0, 1002),
    PlannedBag("calibration_3", 2, 1003),
    PlannedBag("calibration_4", 1, 1004),
    PlannedBag("calibration_5", 3, 1005),
    PlannedBag("calibration_6", 7, 1006),
    PlannedBag("heldout_0", 0, 2000),
    PlannedBag("heldout_1", 2, 2001),
    PlannedBag("heldout_2", 1, 2002),
    PlannedBag("heldout_3", 3, 2003),
    PlannedBag("heldout_4", 7, 2004),
)


def record_episode(task: LiberoTask, planned: PlannedBag) -> Episode:
    """The first successful attempt of a planned bag.

    Raises:
        ConfigurationError: The expert fails again and again.
    """
    for attempt in range(MAX_ATTEMPTS):
        seeds = np.random.SeedSequence([planned.seed, planned.task, attempt])
        task.reset_randomly(int(seeds.generate_state(1)[0]))
        run = ExpertRun(task, NOISE, np.random.default_rng(seeds))
        observations, actions = [], []
        for step, action in enumerate(run):
            stamp_ns = START_NS + step * CONTROL_PERIOD_NS
            seen = Observation(stamp_ns, task.render(), task.state, task.instruction)
            observations.append(seen)
            actions.append(action)
        if run.succeeded:
            metadata = _describe(planned, attempt)
            return Episode.in_step(observations, np.stack(actions), metadata)
    raise ConfigurationError(
        f"the expert failed {MAX_ATTEMPTS} times at {planned.name}; give it another seed"
    )


def _describe(planned: PlannedBag, attempt: int) -> dict[str, str]:
    return {
        "suite": SUITE,
        "task": str(planned.task),
        "seed": str(planned.seed),
        "attempt": str(attempt),
        "executed_noise": str(NOISE),
        "actions": "the expert's, before the noise with which they were executed",
        "mujoco": mujoco_version(),
    }


def main() -> None:
    """Record the bags that are not there yet, task by task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "bags")
    arguments = parser.parse_args()
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    missing = [planned for planned in BAGS if not (arguments.out / planned.name).exists()]
    for index in sorted({planned.task for planned in missing}):
        task = LiberoTask(SUITE, index, randomized_start=True)
        for planned in missing:
            if planned.task == index:
                episode = record_episode(task, planned)
                write_episode(arguments.out / planned.name, episode, layout)
                print(f"{planned.name}: {len(episode.observations)} images a camera", flush=True)
        task.close()


if __name__ == "__main__":
    main()
