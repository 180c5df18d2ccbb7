"""What a demo that is ended from outside leaves behind: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("launch", reason="the live run is launched by ROS 2")

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from demo.live_run import run_live

run_live(Path("none"), [], 1, Path(sys.argv[1]))
"""


def group_of(number: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for pid, group, state in rows if int(group) == number and state[0] != "Z"]


def wait_for(reached, timeout_s: float = 60.0) -> bool:
    end = time.monotonic() + timeout_s
    while not reached() and time.monotonic() < end:
        time.sleep(0.1)
    return reached()


def test_sigterm_ends_launch_node_player_and_collector_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = {**os.environ, "ROS_DOMAIN_ID": "97"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        assert wait_for(lambda: len(group_of(process.pid)) >= 4), (
            "launch, collector and player run"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert wait_for(lambda: group_of(process.pid) == [], 30)
    finally:
        for pid in group_of(process.pid):
            os.kill(pid, signal.SIGKILL)
