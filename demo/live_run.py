"""The deployed half of the demo: launch the node, play bags to it, and read what a stranger heard."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvla_ros.errors import ConfigurationError

ROOT = Path(__file__).parents[1]
_QUIT_S = 20


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What the independent subscriber and the player wrote down.

    Attributes:
        chunks: Messages with actions, in order of arrival.
        holds: Messages that revoke.
        diagnostics: Contents of ``/diagnostics``, in order of arrival.
        frames: Every played frame: ``bag``, ``recorded`` and ``sent`` stamps in nanoseconds.
    """

    chunks: list[dict]
    holds: list[dict]
    diagnostics: list[dict]
    frames: list[dict]

    @property
    def delays_ms(self) -> list[float]:
        """From the camera's stamp to the arrival of each chunk, milliseconds."""
        return [(chunk["received"] - chunk["stamp"]) / 1e6 for chunk in self.chunks]

    @property
    def frame_of_stamp(self) -> dict[int, dict]:
        """Sent stamp to frame."""
        return {frame["sent"]: frame for frame in self.frames}


def run_live(checkpoint: Path, bags: Sequence[Path], repeat: int, folder: Path) -> LiveRun:
    """Serve a checkpoint through ``launch_ros`` and play bags to it over DDS in real time.

    Raises:
        ConfigurationError: The node did not serve; the message names its log.
    """
    chunks, frames, log = (folder / name for name in ("chunks.jsonl", "frames.json", "node.log"))
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", str(random.randint(1, 100))),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(folder / "ros_log"),
    }
    launch = [
        sys.executable, str(ROOT / "scripts" / "ros2_launch.py"),
        str(ROOT / "launch" / "policy.launch.py"), f"checkpoint:={checkpoint.resolve()}",
    ]  # fmt: skip
    collect = [sys.executable, "-m", "demo.collect_chunks", "--out", str(chunks)]
    play = [sys.executable, "-m", "demo.play_bag", *map(str, bags)]
    play += ["--repeat", str(repeat), "--log", str(frames)]
    with log.open("wb") as output, _sigterm_raises():
        common: dict[str, Any] = {"env": environment, "cwd": ROOT, "stdin": subprocess.DEVNULL}
        node = subprocess.Popen(launch, stdout=output, stderr=subprocess.STDOUT, **common)
        collector = subprocess.Popen(collect, stdout=output, stderr=subprocess.STDOUT, **common)
        try:
            played = subprocess.run(play, check=False, **common)
            time.sleep(1.5)  # the last chunk, and one more diagnosis
        finally:
            for process in (node, collector):
                _quit(process)
    if played.returncode:
        raise ConfigurationError(f"the policy node did not serve: see {log}")
    return _read(chunks, frames)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds the stack meanwhile, so that it leaves no processes behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quit(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_QUIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(chunks: Path, frames: Path) -> LiveRun:
    lines = [json.loads(line) for line in chunks.read_text().splitlines()]
    return LiveRun(
        chunks=[line for line in lines if line["kind"] == "chunk"],
        holds=[line for line in lines if line["kind"] == "hold"],
        diagnostics=[line for line in lines if line["kind"] == "diagnostics"],
        frames=json.loads(frames.read_text()),
    )
