"""Nodes in processes of their own, in a ROS domain of their own."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUIT_S = 20


def use_private_domain() -> None:
    """Keep this process and its children away from other robots and other runs.

    Also sets the profile that large images need between processes under Fast DDS.
    """
    profile = str(ROOT / "config" / "fastdds_large_images.xml")
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = profile
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randrange(1, 101))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


@contextmanager
def running(
    module: str,
    parameters: Mapping[str, object],
    remaps: Mapping[str, str] | None = None,
    params_file: Path | None = None,
) -> Iterator[subprocess.Popen]:
    """A node's process with parameters and remappings; it is told to end afterwards."""
    words = [f"{name}:={value}" for name, value in (remaps or {}).items()]
    words += [f"{name}:={_text(value)}" for name, value in parameters.items()]
    flags = ["-r"] * len(remaps or {}) + ["-p"] * len(parameters)
    arguments = [part for pair in zip(flags, words, strict=True) for part in pair]
    files = [] if params_file is None else ["--params-file", str(params_file)]
    command = [sys.executable, "-m", module, "--ros-args", *files, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=QUIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resident_bytes(process: subprocess.Popen) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc does not tell the memory of process {process.pid}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
