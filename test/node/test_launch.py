"""The launch file, the installed executable and a real packed checkpoint, over real DDS."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, JointState

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.sensor_messages import stamp_to_ns

ROOT = Path(__file__).resolve().parents[2]
POSE_NAMES = ["eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz"]
STATE_NAMES = [*POSE_NAMES, "gripper_left", "gripper_right"]
JPEG = cv2.imencode(".jpg", np.full((64, 64, 3), 120, np.uint8))[1].tobytes()

NO_DAEMON = ("--no-daemon", "--spin-time", "2")

Launch = Callable[..., subprocess.Popen]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start ``launch/policy.launch.py`` with arguments; it is ended with the test."""
    started: list[subprocess.Popen] = []

    def start(**arguments: object) -> subprocess.Popen:
        words = [f"{name}:={value}" for name, value in arguments.items()]
        file = ROOT / "launch" / "policy.launch.py"
        command = [sys.executable, str(ROOT / "scripts" / "ros2_launch.py"), str(file), *words]
        environment = {**os.environ, "ROS_LOG_DIR": str(tmp_path / "log")}
        with (tmp_path / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class LiberoRobot:
    """Publishes what ``config/libero.yaml`` asks for."""

    def __init__(self, robot) -> None:
        self.robot = robot
        self.cameras = [
            robot.create_publisher(
                CompressedImage, f"camera/{name}/image_raw/compressed", qos_profile_sensor_data
            )
            for name in ("primary", "wrist")
        ]

    def sense(self, age_s: float = 0.0) -> None:
        stamp = ns_to_stamp(self.robot.now_ns() - round(age_s * 1e9))
        # In another order than the model's: the node picks by name.
        state = JointState(name=STATE_NAMES[::-1], position=[0.1] * len(STATE_NAMES))
        state.header.stamp = stamp
        self.robot.state.publish(state)
        for camera in self.cameras:
            image = CompressedImage(format="jpeg", data=JPEG)
            image.header.stamp = stamp
            camera.publish(image)


def state_of(robot) -> int:
    """The node's lifecycle state, over DDS; unknown while it does not answer."""
    client = robot.create_client(GetState, "policy/get_state")
    try:
        if not robot.until(client.service_is_ready, timeout_s=60):
            return State.PRIMARY_STATE_UNKNOWN
        answer = client.call_async(GetState.Request())
        if not robot.until(answer.done):
            return State.PRIMARY_STATE_UNKNOWN
        return answer.result().current_state.id
    finally:
        robot.destroy_client(client)


def wait_until_active(robot) -> bool:
    return robot.until(lambda: state_of(robot) == State.PRIMARY_STATE_ACTIVE, timeout_s=60)


def told(robot, text: str) -> bool:
    return any(text in s.message for array in robot.statuses for s in array.status)


def end(process: subprocess.Popen, number: signal.Signals = signal.SIGINT) -> int:
    process.send_signal(number)
    return process.wait(timeout=30)


def children_of(process: subprocess.Popen) -> list[int]:
    """The processes that it has started."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(word) for one in threads for word in (one / "children").read_text().split()]


def exit_status_of(adopted: int, timeout_s: float = 30) -> int:
    """How an adopted process ends."""
    last = time.monotonic() + timeout_s
    while time.monotonic() < last:
        ended, status = os.waitpid(adopted, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    raise TimeoutError(f"process {adopted} goes on")


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Processes whose parent dies become this one's, which then learns how they end."""
    set_child_subreaper, libc = 36, ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def ros2(wanted: str, *words: str) -> str:
    """What a command of ROS 2 prints, refusals too, once ``wanted`` is in it or five times failed.

    Each command discovers the nodes anew, and looks for them only so long.
    """
    printed = ""
    for _ in range(5):
        done = subprocess.run(["ros2", *words], capture_output=True, text=True, timeout=60)
        printed = done.stdout + done.stderr
        if wanted in printed:
            break
    return printed


def rate_of(topic: str) -> float:
    """What ``ros2 topic hz`` says of a topic, the first of its lines; it never ends by itself."""
    command = ["ros2", "topic", "hz", topic]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            rates = (line for line in process.stdout if line.startswith("average rate:"))
            return float(next(rates).split()[-1])
        finally:
            watchdog.cancel()
            process.kill()


def output_of(tmp_path: Path) -> str:
    return (tmp_path / "output.txt").read_text()


def test_a_launched_node_answers_and_ends_cleanly_with_a_hold(
    robot, launch: Launch, packed_checkpoint: Path, tmp_path: Path
) -> None:
    process = launch(checkpoint=packed_checkpoint)
    assert wait_until_active(robot), output_of(tmp_path)
    robot.say("pick up the black bowl")
    libero = LiberoRobot(robot)
    assert robot.until(lambda: len(robot.chunks) >= 3, timeout_s=60, meanwhile=libero.sense), (
        output_of(tmp_path)
    )
    chunk = robot.chunks[-1]
    assert len(chunk.data) == chunk.horizon * chunk.dim == 8 * 7
    assert np.isfinite(chunk.data).all()
    assert chunk.names[chunk.gripper_index] == "gripper"
    assert stamp_to_ns(chunk.publish_stamp) < stamp_to_ns(chunk.valid_until)
    assert len(chunk.checkpoint_sha256) == 64
    assert robot.until(
        lambda: any(
            entry.key == "model_p99_ms"
            for array in robot.statuses
            for status in array.status
            for entry in status.values
        ),
        meanwhile=libero.sense,
    )
    assert end(process) == 0, output_of(tmp_path)
    assert robot.until(lambda: "SIGINT" in robot.holds)
    assert robot.messages[-1].hold_reason == "SIGINT"
    assert "process has finished cleanly" in output_of(tmp_path)


def test_the_commands_of_ros_2_work_on_a_launched_node(
    robot, launch: Launch, packed_checkpoint: Path, tmp_path: Path
) -> None:
    process = launch(checkpoint=packed_checkpoint)
    assert wait_until_active(robot), output_of(tmp_path)
    change = ("param", "set", *NO_DAEMON, "/policy", "max_skew_s", "0.04")
    call = ("service", "call")
    cleanup = ("lifecycle_msgs/srv/ChangeState", "{transition: {id: 2}}")
    for wanted, *words in (
        ("chunk_strategy", "param", "list", *NO_DAEMON, "/policy"),
        ("latest_only", "param", "get", *NO_DAEMON, "/policy", "chunk_strategy"),
        ("only be changed while the node is unconfigured", *change),
        ("/policy/action_chunk", "topic", "list", *NO_DAEMON),
        ("serving: true", "topic", "echo", *NO_DAEMON, "--once", "/policy/heartbeat"),
        ("success=True", *call, "/policy/pause", "std_srvs/srv/Trigger"),
        ("success=True", *call, "/policy/resume", "std_srvs/srv/Trigger"),
        ("success=True", *call, "/policy/stop", "std_srvs/srv/Trigger"),
        ("success=True", *call, "/policy/change_state", *cleanup),
        ("successful", *change),
        ("0.04", "param", "get", *NO_DAEMON, "/policy", "max_skew_s"),
    ):
        assert wanted in ros2(wanted, *words), words
    assert rate_of("/policy/heartbeat") > 0
    assert end(process) == 0, output_of(tmp_path)


def test_a_launched_node_does_not_answer_stale_observations(
    robot, launch: Launch, packed_checkpoint: Path, tmp_path: Path
) -> None:
    process = launch(checkpoint=packed_checkpoint)
    assert wait_until_active(robot), output_of(tmp_path)
    robot.say("pick up the black bowl")
    libero = LiberoRobot(robot)
    assert robot.until(
        lambda: told(robot, "waiting for camera_primary"),
        meanwhile=lambda: libero.sense(age_s=0.7),
    )
    assert robot.messages == []
    assert robot.until(lambda: robot.chunks != [], timeout_s=60, meanwhile=libero.sense)
    # launch dies of the signal and would leave the node behind: it must not go on by itself.
    with adopting_orphans():
        (node,) = children_of(process)
        assert end(process, signal.SIGTERM) == -signal.SIGTERM
        assert robot.until(lambda: robot.messages[-1].hold_reason == "SIGTERM")
        assert exit_status_of(node) == 0, "it has ended cleanly"


def test_a_corrupt_checkpoint_leaves_a_launched_node_unconfigured_with_the_reason(
    robot, launch: Launch, packed_checkpoint: Path, tmp_path: Path
) -> None:
    data = packed_checkpoint.read_bytes()
    corrupt = tmp_path / "corrupt.qvla.safetensors"
    corrupt.write_bytes(data[: len(data) // 2])
    process = launch(checkpoint=corrupt)
    assert robot.until(lambda: told(robot, "CheckpointError"), timeout_s=60), output_of(tmp_path)
    assert state_of(robot) == State.PRIMARY_STATE_UNCONFIGURED
    assert "not configured: CheckpointError" in output_of(tmp_path)
    assert end(process) == 0, output_of(tmp_path)


def test_without_autostart_a_launched_node_waits_to_be_configured(
    robot, launch: Launch, tmp_path: Path
) -> None:
    process = launch(checkpoint="none", autostart="false")
    assert state_of(robot) == State.PRIMARY_STATE_UNCONFIGURED
    assert robot.until(lambda: told(robot, "not configured"))
    assert end(process) == 0, output_of(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_ends_the_executable_cleanly_even_when_it_comes_twice(
    robot, number: signal.Signals
) -> None:
    process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "policy_node")])
    try:
        assert state_of(robot) == State.PRIMARY_STATE_UNCONFIGURED
        for _ in range(20):
            process.send_signal(number)
            time.sleep(0.05)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def test_the_other_launch_files_can_be_read_and_tell_their_arguments() -> None:
    from launch import LaunchContext
    from launch.launch_description_sources import AnyLaunchDescriptionSource

    for name, argument in (("adapter", "dry_run"), ("bag", "bag"), ("demo", "repeat")):
        source = AnyLaunchDescriptionSource(str(ROOT / "launch" / f"{name}.launch.py"))
        description = source.get_launch_description(LaunchContext())
        assert argument in {one.name for one in description.get_launch_arguments()}


def test_the_documentation_names_every_executable_and_every_launch_file() -> None:
    text = (ROOT / "docs" / "ros-interface.md").read_text()
    installed = (ROOT / "CMakeLists.txt").read_text().split("install(PROGRAMS")[1].split(")")[0]
    programs = [word.removeprefix("scripts/") for word in installed.split() if "scripts/" in word]
    assert len(programs) >= 4
    introduction = text.split("```")[0]
    assert [name for name in programs if f"`{name}`" not in introduction] == []
    table = text.split("| launch file |")[1].split("\n\n")[0]
    files = [path.name for path in (ROOT / "launch").glob("*.launch.py")]
    assert [name for name in files if f"| `{name}` |" not in table] == []


def test_a_launched_adapter_reads_its_section_and_is_dry(robot, tmp_path: Path) -> None:
    file = ROOT / "launch" / "adapter.launch.py"
    words = [f"params_file:={ROOT / 'config' / 'jtc_arm.yaml'}", "namespace:=arm"]
    command = [sys.executable, str(ROOT / "scripts" / "ros2_launch.py"), str(file), *words]
    with (tmp_path / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wanted = "dry run: joint_trajectory on /arm/adapter/dry_run/joint_trajectory"
        assert robot.until(lambda: wanted in output_of(tmp_path), timeout_s=60)
        assert end(process) == 0
    finally:
        process.kill()
