"""The simulator, which runs under a Python of its own; the protocol stands in its module.

A pipe and not an import: what drives a robot needs neither the simulator nor the evaluation.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qvla_ros
from qvla_ros.errors import ConfigurationError

MODULE = "qvla_ros.evaluate.simulator_process"
_QUIT_S = 20.0


class SimulatorProcess:
    """Asks the simulator; every call waits for its answer.

    Args:
        python: Interpreter in whose environment the simulator is installed.
        words: The module's arguments.

    Raises:
        ConfigurationError: There is no such interpreter.
    """

    def __init__(self, python: str, words: Sequence[str]) -> None:
        environment = dict(os.environ)
        # The packages and libraries of ROS 2 are not the simulator's.
        environment.pop("LD_LIBRARY_PATH", None)
        environment["PYTHONPATH"] = str(Path(qvla_ros.__path__[0]).parent)
        environment.setdefault("MUJOCO_GL", "egl")
        try:
            self._process = subprocess.Popen(
                [python, "-m", MODULE, *words],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # an interrupt of the launch is not for the simulator
            )
        except OSError as error:
            raise ConfigurationError(
                f"parameter simulator_python {python!r} cannot be run ({error}): name the Python "
                "in whose environment LIBERO is installed"
            ) from error

    def next_episode(self) -> dict[str, Any] | None:
        """Put the scene into the next initial state; what it is, or ``None`` if all are done."""
        told = self._ask({"ask": "next"})
        return told if told["episode"] is not None else None

    def look(self) -> dict[str, bytes]:
        """Both cameras now, as JPEG files."""
        sizes = self._ask({"ask": "look"})["sizes"]
        return {name: self._read(size) for name, size in sizes.items()}

    def step(self, action: Sequence[float]) -> dict[str, Any]:
        """Execute one action; the new ``state``, and whether the episode is ``over``."""
        return self._ask({"ask": "step", "action": [float(value) for value in action]})

    def finish(self, policy_sha256: str, quant_tag: str, ros: dict[str, Any]) -> dict[str, Any]:
        """Record the episode; ``success``, ``steps``, and how many of those ``wanted`` are done."""
        names = {"policy_sha256": policy_sha256, "quant_tag": quant_tag}
        return self._ask({"ask": "finish", **names, "ros": ros})

    def close(self) -> None:
        """End the simulator."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        line = b""
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = self._process.stdout.readline()  # perhaps it said why before it ended
        if not line:
            raise ConfigurationError(
                f"the simulator has ended with status {self._process.wait()}: see what it printed"
            )
        told = json.loads(line)
        if "error" in told:
            raise ConfigurationError(f"the simulator: {told['error']}")
        return told

    def _read(self, size: int) -> bytes:
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise ConfigurationError("the simulator has ended in the middle of an image")
        return data
