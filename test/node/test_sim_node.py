"""The simulated robot: its arm, its records, and two episodes through the whole stack.

The last test needs LIBERO and is skipped, with the reason, without it.
"""

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped
from node.chunk_messages import MS, START, chunk
from node.test_parameters import shown
from std_msgs.msg import Float64

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.rollout_record import compare_paired, parse_ros_facts, read_records
from qvla_ros.node.chunk_follower import ChunkFollower
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.sim_arm import SimulatedArm
from qvla_ros.node.sim_log import Counts, EpisodeLog
from qvla_ros.node.sim_parameters import SimParameters
from qvla_ros.node.sim_process import SimulatorProcess

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".venv-libero" / "bin" / "python"
SIMULATOR = Path(os.environ.get("QVLA_SIMULATOR_PYTHON", INSTALLED))
NAMES = "dx dy dz drx dry drz gripper"
EPISODES, STEPS = 2, 20


def command(arm: SimulatedArm, at_ms: int, action: list[float]) -> None:
    """What the adapter sends for an action of one 50 ms step."""
    twist = TwistStamped()
    twist.header.stamp = ns_to_stamp(START + at_ms * MS)
    speeds = [float(value) / 0.05 for value in np.float32(action[:6])]
    twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z = speeds[:3]
    twist.twist.angular.x, twist.twist.angular.y, twist.twist.angular.z = speeds[3:]
    arm.on_twist(twist)
    arm.on_gripper(Float64(data=0.04 * action[6]))


def test_the_arm_moves_in_a_step_exactly_what_the_chunk_said() -> None:
    arm = SimulatedArm(SimParameters(), 50 * MS)
    row = np.random.default_rng(0).uniform(-1, 1, 7).astype(np.float32)
    row[6] = 1.0
    command(arm, 0, row.tolist())
    np.testing.assert_array_equal(arm.action(START + 40 * MS), row)


def test_the_arm_stands_and_keeps_its_gripper_when_velocities_fail_to_come() -> None:
    arm = SimulatedArm(SimParameters(), 50 * MS)
    command(arm, 0, [0.1, 0.2, 0.3, 0, 0, 0, 0.0])
    np.testing.assert_array_equal(arm.action(START + 150 * MS), np.zeros(7, np.float32))
    arm.reset()
    np.testing.assert_array_equal(arm.action(START), [0, 0, 0, 0, 0, 0, 1])


def test_the_arm_knows_whether_it_was_told_what_the_chunk_says_for_this_instant() -> None:
    rows = [[0.1, 0, 0, 0, 0, 0, 1.02], [0.2, 0, 0, 0, 0, 0, 0.0]]
    message = chunk(0, rows, NAMES, gripper_index=6, gripper_open=1.0, gripper_closed=0.0)
    followed = ChunkFollower(0).take(message, START + 10 * MS)
    assert followed is not None
    arm = SimulatedArm(SimParameters(), 50 * MS)
    command(arm, 0, [0.1, 0, 0, 0, 0, 0, 1.0])
    assert arm.does(followed, START)
    assert not arm.does(followed, START + 50 * MS)
    command(arm, 50, [0.1, 0, 0, 0, 0, 0, 0.0])
    assert not arm.does(followed, START + 50 * MS)
    command(arm, 50, [0.2, 0, 0, 0, 0, 0, 0.0])
    assert arm.does(followed, START + 50 * MS)


def diagnostics(name: str, level: bytes = DiagnosticStatus.OK, **values: int) -> DiagnosticArray:
    entries = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    status = DiagnosticStatus(name=name, level=level, message="why", values=entries)
    return DiagnosticArray(status=[status])


def test_an_episode_counts_only_what_was_dropped_while_it_ran() -> None:
    counts = Counts()
    counts.take(diagnostics("policy", drops_superseded=3, deadline_misses=2, chunks=9))
    log = EpisodeLog(counts.now(), ages_ms=[50.0, 100.0, 350.0], misses=4)
    counts.take(diagnostics("policy", drops_superseded=5, deadline_misses=3, chunks=20))
    counts.take(diagnostics("adapter", refused_expired=1))
    facts = log.facts(counts.now(), SimParameters(camera_every=4, real_time_factor=0.5))
    assert facts["drops"] == {"superseded": 2, "refused_expired": 1}
    assert (facts["deadline_misses"], facts["expired_chunks"]) == (4, 1)
    assert facts["chunk_age_ms"] == [100.0, 325.0, 350.0]
    assert parse_ros_facts(facts).camera_every == 4


def test_an_episode_in_which_nothing_came_can_be_recorded_too() -> None:
    assert parse_ros_facts(EpisodeLog(Counter()).facts(Counter(), SimParameters())).chunks == 0


def test_a_node_in_trouble_is_known_until_it_recovers() -> None:
    counts = Counts()
    counts.take(diagnostics("/policy: policy", DiagnosticStatus.ERROR))
    assert counts.trouble == "/policy: policy: why"
    counts.take(diagnostics("/policy: policy"))
    assert counts.trouble == ""


def test_a_simulator_that_cannot_be_started_or_ends_is_told_and_not_waited_for(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="simulator_python"):
        SimulatorProcess(str(tmp_path / "python"), [])
    simulator = SimulatorProcess("/bin/false", [])
    with pytest.raises(ConfigurationError, match="ended with status 1"):
        simulator.next_episode()
    simulator.close()


def test_the_table_of_parameters_in_the_documentation_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "closed-loop.md").read_text()
    table = text.split("<!-- parameters: simulation -->\n")[1].split("\n\n")[0].splitlines()
    assert table[2:] == [shown(entry) for entry in dataclasses.fields(SimParameters)]
    with pytest.raises(ConfigurationError, match="image_transport"):
        SimParameters(image_transport="theora")


def test_a_simulation_that_fails_ends_the_whole_launch_with_a_status(tmp_path: Path) -> None:
    launch = [sys.executable, str(ROOT / "scripts" / "ros2_launch.py")]
    launch += [str(ROOT / "launch" / "closed_loop.launch.py"), "checkpoint:=none"]
    launch += [f"out:={tmp_path / 'a.jsonl'}", "simulator_python:=/bin/false"]
    environment = {**os.environ, "ROS_LOG_DIR": str(tmp_path / "log")}
    done = subprocess.run(
        launch, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 1, output
    assert "sim_node: the simulator has ended with status 1" in output
    assert "[adapter]: stopped: SIGINT" in output


@pytest.mark.skipif(
    not SIMULATOR.exists(),
    reason=f"LIBERO is not installed: {SIMULATOR} is missing; `make closed-loop` installs it",
)
def test_two_episodes_through_ros_execute_the_same_actions_as_in_process(
    packed_checkpoint: Path, tmp_path: Path
) -> None:
    alone, through = tmp_path / "alone.jsonl", tmp_path / "ros.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("LD_LIBRARY_PATH", None)
    words = ["rollout", "--tasks", "0", "--episodes", str(EPISODES), "--max-steps", str(STEPS)]
    words += ["--policy", str(packed_checkpoint), "--out", str(alone)]
    words += ["--workers", str(EPISODES)]  # each with a simulator of its own; below they share one
    run([str(SIMULATOR), "-m", "qvla_ros.cli.main", *words], environment)
    launch = [sys.executable, str(ROOT / "scripts" / "ros2_launch.py")]
    launch += [str(ROOT / "launch" / "closed_loop.launch.py"), "tasks:=[0]", f"out:={through}"]
    launch += [f"episodes:={EPISODES}", f"max_steps:={STEPS}", f"checkpoint:={packed_checkpoint}"]
    launch += [f"simulator_python:={SIMULATOR}"]
    run(launch, {**os.environ, "ROS_LOG_DIR": str(tmp_path / "log")})
    expected, records = read_records(alone), read_records(through)
    assert compare_paired(records, expected).pairs == EPISODES
    # by initial state: two workers record in the order in which they end
    executed = {one.key: one.actions_sha256 for one in records}
    assert executed == {one.key: one.actions_sha256 for one in expected}
    for one in records:
        assert one.ros is not None
        assert one.ros.chunks == -(-one.steps // one.ros.camera_every)
        assert one.ros.deadline_misses == 0


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
