"""The simulator and its records in a process of their own, asked through a pipe.

LIBERO pins packages that the robot's environment must not be held back by, so the simulation node
runs this module with the simulator's own Python. Requests and replies are lines of JSON on the
standard input and output; images follow their line as JPEG files.

| request | reply |
|---|---|
| `{"ask": "next"}` | `episode` (or null), `instruction`, `state`, `state_names`, `period_ns` |
| `{"ask": "look"}` | `sizes`: camera to bytes of its file; then the files in that order |
| `{"ask": "step", "action": [7]}` | `state`, `over` |
| `{"ask": "finish", "policy_sha256", "quant_tag", "ros"}` | `success`, `steps`, `done`, `wanted` |

A request that cannot be served is answered with `error`, and the process ends.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.libero import (
    CONTROL_PERIOD_NS,
    STATE_NAMES,
    LiberoTask,
    actions_digest,
    mujoco_version,
)
from qvla_ros.evaluate.rollout_plan import MAX_STEPS, RolloutPlan
from qvla_ros.evaluate.rollout_record import (
    EpisodeKey,
    RolloutRecord,
    check_same_run,
    parse_ros_facts,
    read_records,
    write_records,
)
from qvla_ros.image_codec import encode_jpeg

Reply = tuple[dict[str, Any], list[bytes]]


class SimulatedEpisodes:
    """The episodes of a plan that a file does not hold yet, one after the other.

    Args:
        plan: Which episodes are wanted.
        out: File of the records; each finished episode is added.
    """

    def __init__(self, plan: RolloutPlan, out: Path) -> None:
        self._plan, self._out = plan, out
        self._records = {record.key: record for record in read_records(out)}
        self._task: LiberoTask | None = None
        self._episode: EpisodeKey | None = None
        self._executed: list[np.ndarray] = []
        self._success = False

    def answer(self, request: dict[str, Any]) -> Reply:
        """Serve one request.

        Raises:
            ConfigurationError: It cannot be served.
        """
        verbs: dict[str, Callable[[dict[str, Any]], Reply]] = {
            "next": self._next,
            "look": self._look,
            "step": self._step,
            "finish": self._finish,
        }
        if request.get("ask") not in verbs:
            raise ConfigurationError(f"the simulator does not know the request {request!r}")
        return verbs[request["ask"]](request)

    def close(self) -> None:
        """Free the simulation."""
        if self._task is not None:
            self._task.close()
            self._task = None

    def _next(self, request: dict[str, Any]) -> Reply:
        missing = [key for key in self._plan.keys if key not in self._records]
        if not missing:
            return {"episode": None}, []
        before, self._episode = self._episode, missing[0]
        suite, index, initial_state = missing[0]
        if self._task is None or before is None or before[:2] != (suite, index):
            self.close()
            self._task = LiberoTask(suite, index)
        self._task.reset_to_initial_state(initial_state)
        self._executed, self._success = [], False
        told = {
            "episode": list(missing[0]),
            "instruction": self._task.instruction,
            "state": self._task.state.tolist(),
            "state_names": list(STATE_NAMES),
            "period_ns": CONTROL_PERIOD_NS,
        }
        return told, []

    def _look(self, request: dict[str, Any]) -> Reply:
        files = {name: encode_jpeg(image) for name, image in self._running().render().items()}
        return {"sizes": {name: len(data) for name, data in files.items()}}, list(files.values())

    def _step(self, request: dict[str, Any]) -> Reply:
        task, action = self._running(), np.array(request["action"], np.float32)
        task.step(action)
        self._executed.append(action)
        self._success = task.success
        over = self._success or len(self._executed) >= self._plan.max_steps
        return {"state": task.state.tolist(), "over": over}, []

    def _finish(self, request: dict[str, Any]) -> Reply:
        self._running()
        if self._episode is None:
            raise ValueError("a running task has an episode")
        suite, index, initial_state = self._episode
        record = RolloutRecord(
            suite=suite,
            task=index,
            initial_state=initial_state,
            success=self._success,
            steps=len(self._executed),
            actions_sha256=actions_digest(np.stack(self._executed)),
            policy_sha256=request["policy_sha256"],
            quant_tag=request["quant_tag"],
            mujoco=mujoco_version(),
            ros=parse_ros_facts(request["ros"]),
        )
        kept = list(self._records.values())
        check_same_run(self._out, kept, record.policy_sha256, record.quant_tag, record.mujoco)
        self._records[record.key] = record
        write_records(self._out, self._records.values())
        done = sum(key in self._records for key in self._plan.keys)
        told = {"success": record.success, "steps": record.steps, "done": done}
        return {**told, "wanted": len(self._plan.keys)}, []

    def _running(self) -> LiberoTask:
        if self._task is None:
            raise ConfigurationError("no episode is running: ask for the next one first")
        return self._task


def serve(episodes: SimulatedEpisodes, requests: BinaryIO, replies: BinaryIO) -> int:
    """Answer requests until their end; the exit status."""
    try:
        for line in requests:
            try:
                told, files = episodes.answer(json.loads(line))
            except (ConfigurationError, ValueError) as error:
                _send(replies, {"error": f"{error}"}, [])
                return 2
            _send(replies, told, files)
        return 0
    finally:
        episodes.close()


def _send(replies: BinaryIO, told: dict[str, Any], files: list[bytes]) -> None:
    replies.write(f"{json.dumps(told)}\n".encode())
    for data in files:
        replies.write(data)
    replies.flush()


def main() -> int:
    """Command line: the plan and the file of the records."""
    parser = argparse.ArgumentParser(description="Serves LIBERO through a pipe.")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--tasks", type=int, nargs="+", required=True)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LIBERO prints must not get among the replies
    try:
        plan = RolloutPlan(
            options.suite, tuple(options.tasks), options.episodes, options.max_steps
        )
        episodes = SimulatedEpisodes(plan, options.out)
    except ConfigurationError as error:
        _send(replies, {"error": f"{error}"}, [])
        return 2
    return serve(episodes, sys.stdin.buffer, replies)


if __name__ == "__main__":
    sys.exit(main())
