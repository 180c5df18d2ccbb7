"""Collect demonstrations of the scripted expert: ``python -m demo.train.collect --help``.

The expert's clean actions are stored, but they are executed with noise, so that the recordings
contain states off the ideal path together with the way back. Only successes are kept. Each
attempt is reproducible by the collection's seed and the attempt's number, and all attempts are
listed in ``attempts.jsonl``: an interrupted collection goes on where it stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from demo.train.demonstration import Demonstration, DemonstrationOrigin, write_demonstration
from demo.train.expert_run import MAX_STEPS, ExpertRun
from qvla_ros.evaluate.libero import CAMERAS, LiberoTask, mujoco_version
from qvla_ros.image_codec import encode_jpeg

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.35)
IMAGE_STRIDE = 2
TOLD_EVERY = 10  # attempts


class Collection:
    """The folder of one task's demonstrations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "attempts.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        results = [json.loads(line) for line in lines]
        self.attempts = len(results)
        self.successes = sum(result["success"] for result in results)

    def add(self, origin: DemonstrationOrigin, demonstration: Demonstration | None) -> None:
        """Store the outcome of the next attempt."""
        if demonstration is not None:
            write_demonstration(self._folder / f"{origin.attempt:05d}.npz", demonstration)
        result = {
            "attempt": origin.attempt,
            "success": demonstration is not None,
            "steps": len(demonstration.actions) if demonstration is not None else MAX_STEPS,
            "noise": origin.noise,
        }
        with self._log.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        self.attempts += 1
        self.successes += result["success"]


def collect_one(
    task: LiberoTask, suite: str, index: int, seed: int, attempt: int
) -> tuple[DemonstrationOrigin, Demonstration | None]:
    """Make one attempt: its origin, and the demonstration or ``None`` where the expert failed."""
    seeds = np.random.SeedSequence([seed, index, attempt])
    rng = np.random.default_rng(seeds)
    noise, phase = float(rng.choice(NOISE_LEVELS)), int(rng.integers(IMAGE_STRIDE))
    origin = DemonstrationOrigin(suite, index, seed, attempt, noise, mujoco_version())
    task.reset_randomly(int(seeds.generate_state(1)[0]))
    run = ExpertRun(task, noise, rng)
    demonstration = _record(run, task, phase, origin)
    return origin, demonstration if run.succeeded else None


def _record(
    run: ExpertRun, task: LiberoTask, phase: int, origin: DemonstrationOrigin
) -> Demonstration:
    jpegs: dict[str, list[bytes]] = {name: [] for name in CAMERAS}
    image_steps, states, actions = [], [], []
    for step, action in enumerate(run):
        if step % IMAGE_STRIDE == phase:
            image_steps.append(step)
            for name, image in task.render().items():
                jpegs[name].append(encode_jpeg(image))
        states.append(task.state)
        actions.append(action)
    return Demonstration(
        jpegs,
        np.array(image_steps, np.int32),
        np.stack(states),
        np.stack(actions),
        task.instruction,
        origin,
    )


def main() -> None:
    """Collect until there are enough demonstrations or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--task", type=int, required=True, help="index of the task in the suite")
    parser.add_argument("--episodes", type=int, default=120, help="successes wanted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--max-seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()

    collection = Collection(arguments.out)
    task = LiberoTask(arguments.suite, arguments.task, randomized_start=True)
    start, stored_before, total_steps = time.monotonic(), collection.successes, 0
    while (
        collection.successes < arguments.episodes
        and time.monotonic() - start < arguments.max_seconds
    ):
        origin, demonstration = collect_one(
            task, arguments.suite, arguments.task, arguments.seed, collection.attempts
        )
        collection.add(origin, demonstration)
        total_steps += len(demonstration.actions) if demonstration is not None else MAX_STEPS
        if collection.attempts % TOLD_EVERY and collection.successes < arguments.episodes:
            continue
        seconds = time.monotonic() - start
        gained = max(collection.successes - stored_before, 1)
        missing = arguments.episodes - collection.successes
        print(
            f"task {arguments.task}: {collection.successes}/{arguments.episodes} demonstrations, "
            f"{collection.attempts} attempts, {total_steps / seconds:.1f} steps/s, "
            f"ETA {missing * seconds / gained:.0f} s",
            flush=True,
        )
    task.close()


if __name__ == "__main__":
    main()
