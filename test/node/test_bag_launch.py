"""``bag.launch.py``: a recorded robot in its own time before a policy and a dry adapter, over DDS.

``ros2 bag play`` is stood in for by a script that understands the same words.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from geometry_msgs.msg import TwistStamped

pytest.importorskip("rosbags", reason="the bag is read with rosbags")
pytest.importorskip("launch", reason="launch files need ROS 2's launch")

from qvla_ros.sensor_messages import stamp_to_ns

ROOT = Path(__file__).resolve().parents[2]
BAG = ROOT / "demo" / "bags" / "heldout_0"


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``ros2`` is the stand-in."""
    player = tmp_path / "bin" / "ros2"
    player.parent.mkdir()
    script = ROOT / "test" / "node" / "stand_in_bag_play.py"
    player.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    player.chmod(0o755)
    path = f"{player.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "ROS_LOG_DIR": str(tmp_path / "log")}


def test_a_bag_is_answered_in_its_own_time_and_nothing_of_it_is_stale(
    robot, packed_checkpoint: Path, tmp_path: Path, stand_in: dict[str, str]
) -> None:
    twists: list[TwistStamped] = []
    robot.create_subscription(TwistStamped, "adapter/dry_run/twist", twists.append, 10)
    words = [f"checkpoint:={packed_checkpoint}", f"bag:={BAG}"]
    launcher, file = ROOT / "scripts" / "ros2_launch.py", ROOT / "launch" / "bag.launch.py"
    output = tmp_path / "output.txt"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(launcher), str(file), *words],
            env=stand_in, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        assert robot.until(lambda: len(robot.chunks) >= 3, 90), output.read_text()
        assert robot.until(lambda: any(t.twist.linear.x for t in twists), 30), output.read_text()
        now_ns = robot.now_ns()
        assert all(now_ns - stamp_to_ns(c.header.stamp) > 3600e9 for c in robot.chunks)
        drops = {
            entry.key
            for array in robot.statuses
            for status in array.status
            for entry in status.values
            if entry.key.startswith("drops_")
        }
        assert not drops & {"drops_stale_observation", "drops_future_stamp"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, output.read_text()
        clean = [line for line in output.read_text().splitlines() if "finished cleanly" in line]
        assert len(clean) >= 2, "policy and adapter; the player is interrupted"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
