"""Kill the offline tool at several stages, start it again, and compare the bytes of the result."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvla_ros.errors import ConfigurationError

_WORDS = ("--frames", "4", "--probes", "2", "--bits", "3", "--threads", "1", "--save-every", "0")
_POLL_S = 0.02
_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class KillPoint:
    """When to kill.

    Attributes:
        name: For people.
        reached: Looks at the work folder.
    """

    name: str
    reached: Callable[[Path], bool]


KILL_POINTS = (
    KillPoint("begun", lambda work: (work / "purpose.json").exists()),
    KillPoint("sweep", lambda work: (work / "sweep.safetensors").exists()),
    KillPoint("planned", lambda work: (work / "table.safetensors").exists()),
    KillPoint("first stages", lambda work: (work / "stage-0003.safetensors").exists()),
    KillPoint("late stages", lambda work: (work / "stage-0015.safetensors").exists()),
    KillPoint("candidate", lambda work: (work / "candidate.qvla.safetensors").exists()),
)


def kill_and_resume(
    model: Path, bags: Sequence[Path], folder: Path, points: Sequence[KillPoint] = KILL_POINTS
) -> dict[str, object]:
    """Three results: two runs left in peace, and one that is killed at every point.

    In between, a started run meets a bag of the same name and other content, and has to refuse it.
    """
    folder.mkdir(parents=True)
    first, second, killed = (
        folder / f"{name}.safetensors" for name in ("first", "second", "killed")
    )
    _finish(model, bags, first, second)
    other = shutil.copytree(bags[0], folder / "changed" / bags[-1].name)
    at, refusal = [], ""
    for point in points:
        if _killed_at(model, bags, killed, point):
            at.append(point.name)
        if not refusal:
            refusal = _refusal(model, [*bags[:-1], other], killed)
    _finish(model, bags, killed)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second, killed)]
    return {
        "same_seed_identical": digests[0] == digests[1],
        "resume_identical": digests[0] == digests[2] and len(at) == len(points),
        "killed_at": at,
        "changed_calibration_refused": bool(refusal),
        "refusal": refusal,
    }


def _command(model: Path, bags: Sequence[Path], out: Path) -> list[str]:
    words = [sys.executable, "-m", "qvla_ros.cli.main", "quantize", model, *bags, *_WORDS]
    return [str(word) for word in (*words, "--out", out)]


def _finish(model: Path, bags: Sequence[Path], *results: Path) -> None:
    """Run to the end; several results side by side."""
    runs = [
        subprocess.Popen(
            _command(model, bags, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for out in results
    ]
    for run in runs:
        _, said = run.communicate()
        if run.returncode:
            raise ConfigurationError(f"qvla quantize failed: {said.decode().strip()[-500:]}")


def _killed_at(model: Path, bags: Sequence[Path], out: Path, point: KillPoint) -> bool:
    """Whether the run was killed there; false if it was done sooner."""
    work = out.with_name(f"{out.name}.work")
    process = subprocess.Popen(
        _command(model, bags, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    try:
        while not point.reached(work):
            if process.poll() is not None:
                return False
            if time.monotonic() - began > _LIMIT_S:
                raise ConfigurationError(f"qvla quantize did not reach {point.name!r}")
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return not out.exists()


def _refusal(model: Path, bags: Sequence[Path], out: Path) -> str:
    """What the tool says to other bags in a work folder that was begun; empty if it goes on."""
    done = subprocess.run(_command(model, bags, out), capture_output=True, text=True, check=False)
    refused = done.returncode == 2 and "unfinished work for something else" in done.stderr
    said = done.stderr.strip().splitlines()[-1] if refused else ""
    return said.replace(f"{out.parent}/", "")
