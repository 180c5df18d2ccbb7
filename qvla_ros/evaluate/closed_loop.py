"""Closed-loop roll-outs of a policy on LIBERO's official initial states, in parallel.

The protocol: a hard reset with seed 0, the official initial state, ten steps of standing still;
then the policy is asked, its chunk (or the first actions of it) is executed open loop, and so on
until the goal is reached or the steps are used up. An episode depends on nothing but its policy,
task and initial state, so an interrupted evaluation goes on where it stopped, and episodes of two
policies are pairs.
"""

import atexit
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.libero import (
    ACTION_NAMES,
    CAMERAS,
    CONTROL_PERIOD_NS,
    STATE_NAMES,
    LiberoTask,
    actions_digest,
    mujoco_version,
)
from qvla_ros.evaluate.rollout_plan import RolloutPlan
from qvla_ros.evaluate.rollout_record import (
    EpisodeKey,
    RolloutRecord,
    check_same_run,
    read_records,
    write_records,
)
from qvla_ros.image_codec import turned
from qvla_ros.policy.policy import Policy, float_policy, load_policy

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where a policy comes from, so that each worker process can load its own.

    Attributes:
        path: A packed checkpoint (a file) or a float model (a folder).
        unnorm_key: Data set whose statistics a float model uses; unused for a checkpoint.
        orientation: How the simulator's upright images are turned for it.
        open_loop_steps: How many actions of each chunk are executed before it is asked again; 0:
            all.
    """

    path: Path
    unnorm_key: str | None = None
    orientation: str = "as_is"
    open_loop_steps: int = 0

    def tag(self, policy: Policy) -> str:
        """What the records say of how the policy is run."""
        turns = "" if self.orientation == "as_is" else f", images {self.orientation}"
        steps = f", {self.open_loop_steps} steps of a chunk" if self.open_loop_steps else ""
        return policy.quant_tag + turns + steps

    def load(self) -> Policy:
        """Load the policy."""
        if self.path.is_dir():
            return float_policy(self.path, self.unnorm_key)
        return load_policy(self.path)


def run_rollouts(
    source: PolicySource,
    plan: RolloutPlan,
    out: Path,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RolloutRecord]:
    """Run the episodes of ``plan`` that ``out`` does not hold yet, saving after each one.

    Returns:
        The records of all episodes of the plan, in its order.

    Raises:
        ConfigurationError: LIBERO is missing, ``out`` is the file of another policy or damaged,
            the policy is not one for this robot, or the worker processes die again and again.
    """
    policy, mujoco = source.load(), mujoco_version()
    check_fits_libero(policy)
    if not 0 <= source.open_loop_steps <= policy.horizon:
        raise ConfigurationError(
            f"{source.open_loop_steps} steps of each chunk are to be executed; a chunk has "
            f"{policy.horizon}"
        )
    records = {record.key: record for record in read_records(out)}
    kept = list(records.values())
    check_same_run(out, kept, policy.checkpoint_sha256, source.tag(policy), mujoco)
    del policy  # the workers load their own
    missing = [key for key in plan.keys if key not in records]
    _report(on_progress, len(plan.keys) - len(missing), plan)
    for record in _run_all(source, plan.max_steps, missing, workers):
        records[record.key] = record
        write_records(out, records.values())
        _report(on_progress, sum(key in records for key in plan.keys), plan)
    return [records[key] for key in plan.keys]


def run_episode(
    policy: Policy,
    task: LiberoTask,
    initial_state: int,
    max_steps: int,
    orientation: str = "as_is",
    open_loop_steps: int = 0,
) -> tuple[bool, np.ndarray]:
    """Run one episode; the last two arguments are those of ``PolicySource``.

    Returns:
        Whether the goal was reached, and the executed actions ``float32 [steps, 7]``.
    """
    task.reset_to_initial_state(initial_state)
    executed: list[np.ndarray] = []
    while len(executed) < max_steps:
        sensed = task.observe(len(executed) * CONTROL_PERIOD_NS)
        images = {name: turned(image, orientation) for name, image in sensed.images.items()}
        actions = policy.infer(replace(sensed, images=images)).chunk.actions
        actions = actions[: open_loop_steps or None]
        for action in actions[: max_steps - len(executed)]:
            task.step(action)
            executed.append(action)
            if task.success:
                return True, np.stack(executed)
    return False, np.stack(executed)


def check_fits_libero(policy: Policy) -> None:
    """Refuse a policy for another robot.

    Raises:
        ConfigurationError: Cameras, state, actions or period are not those of the simulation.
    """
    strange = sorted(set(policy.image_names) - set(CAMERAS))
    sizes = (policy.state_dim, policy.action_dim, policy.period_ns)
    wanted = (len(STATE_NAMES), len(ACTION_NAMES), CONTROL_PERIOD_NS)
    if strange or sizes != wanted:
        raise ConfigurationError(
            f"policy {policy.model_id!r} is not one for LIBERO: unknown cameras {strange}, "
            f"(state, action, period in ns) {sizes} instead of {wanted}"
        )


def _report(on_progress: Callable[[int, int], None] | None, done: int, plan: RolloutPlan) -> None:
    if on_progress is not None:
        on_progress(done, len(plan.keys))


def _run_all(
    source: PolicySource, max_steps: int, keys: Sequence[EpisodeKey], workers: int
) -> Iterator[RolloutRecord]:
    """Every episode; if a worker process dies, what it had not finished is run by new ones.

    A simulator and an OpenGL driver are native code, which can crash once in many thousand
    episodes. Episodes do not depend on each other, so nothing of the result depends on that.
    """
    left = dict.fromkeys(keys)
    while left:
        before = len(left)
        try:
            for record in _run_in_workers(source, max_steps, list(left), workers):
                del left[record.key]
                yield record
        except BrokenProcessPool as error:
            if len(left) == before:
                raise ConfigurationError(
                    "a worker process died before any episode was finished: the simulator or the "
                    "policy crashes, or memory ran out; finished episodes are kept"
                ) from error
            _LOG.warning(
                "a worker process died; the %d episodes left go on in new ones", len(left)
            )


def _run_in_workers(
    source: PolicySource, max_steps: int, keys: Sequence[EpisodeKey], workers: int
) -> Iterator[RolloutRecord]:
    with ProcessPoolExecutor(
        min(workers, len(keys)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork would share the OpenGL state
        initializer=_start_worker,
        initargs=(source, max_steps),
    ) as pool:
        futures = [pool.submit(_run_in_worker, key) for key in keys]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Worker:
    """A process's policy and the task that it has run last, which takes seconds to build."""

    def __init__(self, source: PolicySource, max_steps: int) -> None:
        torch.set_num_threads(1)
        self._source, self._policy = source, source.load()
        self._max_steps = max_steps
        self._task: LiberoTask | None = None
        self._task_key: tuple[str, int] | None = None
        self._closes_at_exit = False

    def run(self, key: EpisodeKey) -> RolloutRecord:
        suite, index, initial_state = key
        task = self._open_task(suite, index)
        success, actions = run_episode(
            self._policy,
            task,
            initial_state,
            self._max_steps,
            self._source.orientation,
            self._source.open_loop_steps,
        )
        if not self._closes_at_exit:
            # After the first image, to run before the exit handler that ends MuJoCo's EGL.
            atexit.register(self.close)
            self._closes_at_exit = True
        return RolloutRecord(
            suite=suite,
            task=index,
            initial_state=initial_state,
            success=success,
            steps=len(actions),
            actions_sha256=actions_digest(actions),
            policy_sha256=self._policy.checkpoint_sha256,
            quant_tag=self._source.tag(self._policy),
            mujoco=mujoco_version(),
        )

    def close(self) -> None:
        """Free the simulation while the interpreter is still whole."""
        if self._task is not None:
            self._task.close()
            self._task = None

    def _open_task(self, suite: str, index: int) -> LiberoTask:
        if self._task is None or self._task_key != (suite, index):
            self.close()
            self._task, self._task_key = LiberoTask(suite, index), (suite, index)
        return self._task


_worker: _Worker | None = None  # of this process, made by the pool's initializer


def _start_worker(source: PolicySource, max_steps: int) -> None:
    global _worker
    _worker = _Worker(source, max_steps)


def _run_in_worker(key: EpisodeKey) -> RolloutRecord:
    if _worker is None:
        raise ValueError("the worker process was not initialized")
    return _worker.run(key)
