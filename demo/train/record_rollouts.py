"""Record a policy's own episodes as bags: ``python -m demo.train.record_rollouts --help``.

To calibrate with the states that a policy gets itself into, instead of the expert's: of the float
policy, or of a quantized one. Scenes are drawn at random with seeds of their own, so they are
neither LIBERO's official initial states nor those of the training data and of the demo's bags.
Failed episodes are kept too: they are states that the policy gets into.
"""

import argparse
from pathlib import Path

import numpy as np

from demo.train.make_bags import START_NS, SUITE
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.closed_loop import PolicySource, check_fits_libero
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.libero import CONTROL_PERIOD_NS, LiberoTask, mujoco_version
from qvla_ros.evaluate.rollout_plan import MAX_STEPS
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.observation import Observation
from qvla_ros.policy.policy import Policy

FIRST_SEED = 3000


def record(policy: Policy, task: LiberoTask, max_steps: int) -> Episode:
    """Run one episode from where ``task`` stands, with an image of each camera at every step."""
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    while len(actions) < max_steps and not task.success:
        chunk = policy.infer(task.observe(START_NS + len(actions) * CONTROL_PERIOD_NS)).chunk
        for action in chunk.actions[: max_steps - len(actions)]:
            stamp_ns = START_NS + len(actions) * CONTROL_PERIOD_NS
            seen = Observation(stamp_ns, task.render(), task.state, task.instruction)
            observations.append(seen)
            actions.append(action)
            task.step(action)
            if task.success:
                break
    metadata = {
        "suite": SUITE,
        "policy_sha256": policy.checkpoint_sha256,
        "quant_tag": policy.quant_tag,
        "success": str(task.success),
        "mujoco": mujoco_version(),
    }
    return Episode.in_step(observations, np.stack(actions), metadata)


def main() -> None:
    """Record the bags that are not there yet, task by task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, required=True, help="checkpoint or model folder")
    parser.add_argument("--tasks", type=int, nargs="+", required=True)
    parser.add_argument("--episodes", type=int, default=2, help="bags a task (2)")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bags")
    options = parser.parse_args()
    policy = PolicySource(options.policy).load()
    check_fits_libero(policy)
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    for index in options.tasks:
        task = LiberoTask(SUITE, index, randomized_start=True)
        for number in range(options.episodes):
            path = options.out / f"rollout_{index}_{number}"
            if path.exists():
                continue
            task.reset_randomly(FIRST_SEED + 100 * index + number)
            episode = record(policy, task, options.max_steps)
            write_episode(path, episode, layout)
            steps, success = len(episode.observations), episode.metadata["success"]
            print(f"{path.name}: {steps} steps, success {success}", flush=True)
        task.close()


if __name__ == "__main__":
    main()
