"""A simulated robot as a ROS 2 node: cameras, state, instruction and clock out, commands in.

It drives LIBERO's episodes through the whole deployed stack: policy node, chunks, adapter. The
simulator moves only with the clock that is published here, one control step at a time.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64, String

from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.image_codec import decode_compressed
from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.node.chunk_follower import ChunkFollower
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.declaration import declare_parameters, read_parameters
from qvla_ros.node.inputs import LATCHED
from qvla_ros.node.sim_arm import SimulatedArm
from qvla_ros.node.sim_log import Counts, EpisodeLog
from qvla_ros.node.sim_parameters import SimParameters
from qvla_ros.node.sim_process import SimulatorProcess
from qvla_ros.node.spinning import new_executor
from qvla_ros.sensor_messages import SECOND_NS

CAMERAS = ("primary", "wrist")
START_NS = 10 * SECOND_NS
"""The clock's first time: zero would mean that there is none."""

GAP_NS = 2 * SECOND_NS
"""Simulated time between two episodes: whatever is left of the one before is too old."""

RESEND_NS = 3 * SECOND_NS
_CLOCK_AGAIN_NS = 200_000_000
_AGREE_NS = SECOND_NS // 2
_REPORT_NS = 3 * SECOND_NS
_RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


class SimNode(Node):
    """Runs episodes one after the other; every call of ``run`` spins the node.

    Args:
        overrides: Parameters that are given already, as a launch file gives them.

    Raises:
        ConfigurationError: A parameter is not allowed, or the simulator cannot be started.
    """

    def __init__(self, overrides: Sequence[Parameter] = ()) -> None:
        super().__init__("simulation", parameter_overrides=list(overrides))
        declare_parameters(self, SimParameters)
        self._parameters = read_parameters(self, SimParameters)
        self.told_to_end = ""
        self._now_ns = START_NS
        self._period_ns = 0
        self._instruction: str | None = None
        self._state: list[float] = []
        self._state_names: list[str] = []
        self._follower = ChunkFollower(heartbeat_timeout_ns=0)
        self._arm: SimulatedArm | None = None
        self._serving = False
        self._counts, self._log = Counts(), EpisodeLog(Counts().now())
        self._advertise()
        self._listen()
        self._executor = new_executor()
        self._executor.add_node(self)
        self._simulator = SimulatorProcess(*_command(self._parameters))

    def run(self) -> None:
        """Run the episodes that are not recorded yet.

        Raises:
            ConfigurationError: The others are not there, do not answer, or the simulator fails.
        """
        while (told := self._simulator.next_episode()) is not None:
            self._begin(told)
            self._wait_for_others()
            self._say(told["instruction"])
            self._run_episode()
            self._finish(told)

    def close(self) -> None:
        """End the simulator."""
        self._simulator.close()
        self._executor.shutdown()

    def _advertise(self) -> None:
        self._clock = self.create_publisher(Clock, "/clock", _RELIABLE)
        raw = self._parameters.image_transport == "raw"
        kind, suffix = (Image, "") if raw else (CompressedImage, "/compressed")
        self._cameras = {
            name: self.create_publisher(kind, f"camera/{name}/image_raw{suffix}", _RELIABLE)
            for name in CAMERAS
        }
        self._states = self.create_publisher(JointState, "robot/state", _RELIABLE)
        self._instructions = self.create_publisher(String, "instruction", LATCHED)

    def _listen(self) -> None:
        self.create_subscription(TwistStamped, "twist", self._on_twist, _RELIABLE)
        self.create_subscription(Float64, "gripper/command", self._on_gripper, _RELIABLE)
        self.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, _RELIABLE)
        self.create_subscription(Heartbeat, "policy/heartbeat", self._on_heartbeat, _RELIABLE)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._counts.take, _RELIABLE)

    def _begin(self, told: dict[str, Any]) -> None:
        self._period_ns = told["period_ns"]
        self._state, self._state_names = told["state"], told["state_names"]
        if self._arm is None:
            self._arm = SimulatedArm(self._parameters, self._period_ns)
        self._arm.reset()
        self._now_ns += GAP_NS
        self._tell_time()

    def _wait_for_others(self) -> None:
        if not self._spin_until(self._all_there, self._parameters.start_timeout_ns):
            raise ConfigurationError(
                f"waited {self._parameters.start_timeout_s:g} s for {' and '.join(self._missing())}"
                ": see their logs"
            )
        self._log = EpisodeLog(self._counts.now())

    def _all_there(self) -> bool:
        if self._counts.trouble and not self._serving:
            raise ConfigurationError(self._counts.trouble)
        return not self._missing()

    def _missing(self) -> list[str]:
        there = {
            "a policy node that serves": self._serving,
            "its camera subscriptions": all(
                camera.get_subscription_count() for camera in self._cameras.values()
            ),
            "an adapter that commands on twist": self.count_publishers("twist") > 0,
            "two nodes that follow /clock": self._clock.get_subscription_count() > 1,
        }
        return [name for name, found in there.items() if not found]

    def _say(self, instruction: str) -> None:
        if instruction != self._instruction:
            self._instruction = instruction
            self._instructions.publish(String(data=instruction))
            self._spin_until(lambda: False, _AGREE_NS)  # another topic could overtake it
            self._now_ns += self._period_ns  # a chunk is not of the instant of the hold before it

    def _run_episode(self) -> None:
        pace = self._parameters.real_time_factor
        step, due_ns, over = 0, time.monotonic_ns(), False
        while not over:
            looks = step % self._parameters.camera_every == 0
            self._sense(self._simulator.look() if looks else {})
            if pace == 0:
                self._wait_for_command(looks)
            else:
                due_ns = max(due_ns + round(self._period_ns / pace), time.monotonic_ns())
                self._spin_until(lambda end=due_ns: time.monotonic_ns() >= end, 10 * SECOND_NS)
            over = self._step()
            step += 1

    def _step(self) -> bool:
        chunk = self._follower.due(self._now_ns, time.monotonic_ns())
        if chunk is None:
            self._log.misses += 1
        else:
            self._log.ages_ms.append((self._now_ns - chunk.observed_ns) / 1e6)
        told = self._simulator.step(self._arm.action(self._now_ns))
        self._state = told["state"]
        self._now_ns += self._period_ns
        return told["over"]

    def _wait_for_command(self, looked: bool) -> None:
        """Let no time pass until the adapter commands what the newest chunk says for now.

        What it commands before that, e.g. a stop because the old chunk has run out while the
        policy thinks, belongs to a time that does not pass.
        """
        began_ns = time.monotonic_ns()
        while not self._spin_until(lambda: self._is_answered(looked), RESEND_NS):
            if time.monotonic_ns() - began_ns > self._parameters.answer_timeout_ns:
                raise ConfigurationError(
                    f"no command for {self._now_ns} ns came within "
                    f"{self._parameters.answer_timeout_s:g} s although the clock stood still: the "
                    "policy has to answer each image (request_period_s at most camera_every "
                    "steps), and the adapter to command twist and gripper/command as its chunks say"
                )
            if looked:
                self._now_ns += self._period_ns  # the same stamps again would be refused
                self._log.resent += 1
                self._sense(self._simulator.look())

    def _is_answered(self, looked: bool) -> bool:
        chunk = self._follower.due(self._now_ns, time.monotonic_ns())
        if chunk is None or (looked and chunk.observed_ns != self._now_ns):
            return False
        return self._arm.does(chunk, self._now_ns)

    def _finish(self, told: dict[str, Any]) -> None:
        heard = self._counts.messages
        self._now_ns += GAP_NS
        self._spin_until(lambda: self._counts.messages >= heard + 4, _REPORT_NS)
        chunks = self._log.chunks
        if not chunks:
            raise ConfigurationError(
                "the policy has sent no chunk in a whole episode: see its log"
            )
        facts = self._log.facts(self._counts.now(), self._parameters)
        last = chunks[-1]
        end = self._simulator.finish(last.checkpoint_sha256, last.quant_tag, facts)
        suite, task, state = told["episode"]
        self.get_logger().info(
            f"{end['done']}/{end['wanted']} episodes: {suite} task {task} initial state {state}: "
            f"{'success' if end['success'] else 'failure'} after {end['steps']} steps; chunk age "
            f"p50/p95/max {facts['chunk_age_ms']} ms, {facts['deadline_misses']} deadline misses"
        )

    def _sense(self, images: dict[str, bytes]) -> None:
        """Publish the clock and what the robot senses now."""
        self._tell_time()
        stamp = ns_to_stamp(self._now_ns)
        state = JointState(name=self._state_names, position=self._state)
        state.header.stamp = stamp
        self._states.publish(state)
        for name, data in images.items():
            message = self._image(data)
            message.header.stamp = stamp
            message.header.frame_id = name
            self._cameras[name].publish(message)

    def _image(self, data: bytes) -> CompressedImage | Image:
        if self._parameters.image_transport == "compressed":
            return CompressedImage(format="jpeg", data=data)
        pixels = decode_compressed(data)
        height, width, channels = pixels.shape
        size = {"height": height, "width": width, "step": width * channels}
        return Image(encoding="rgb8", data=pixels.tobytes(), **size)

    def _tell_time(self) -> None:
        self._clock.publish(Clock(clock=ns_to_stamp(self._now_ns)))

    def _spin_until(self, reached: Callable[[], bool], timeout_ns: int) -> bool:
        """Serve callbacks until something is reached; whether it was in time."""
        end_ns = time.monotonic_ns() + timeout_ns
        again_ns = time.monotonic_ns() + _CLOCK_AGAIN_NS
        while not reached():
            now_ns = time.monotonic_ns()
            if self.told_to_end:
                raise ConfigurationError(f"ended by {self.told_to_end}; the run can be resumed")
            if now_ns >= end_ns:
                return False
            if now_ns >= again_ns:
                self._tell_time()  # the subscriptions of /clock are best effort
                again_ns = now_ns + _CLOCK_AGAIN_NS
            self._executor.spin_once(timeout_sec=min(0.01, (end_ns - now_ns) / 1e9))
        return True

    def _on_twist(self, message: TwistStamped) -> None:
        if self._arm is not None:
            self._arm.on_twist(message)

    def _on_gripper(self, message: Float64) -> None:
        if self._arm is not None:
            self._arm.on_gripper(message)

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._follower.take(message, self._now_ns) is not None:
            self._log.chunks.append(message)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._serving = message.serving


def _command(parameters: SimParameters) -> tuple[str, list[str]]:
    """The simulator's Python and the words that tell it what is wanted."""
    if not parameters.out:
        raise ConfigurationError("parameter out is empty: name the file of the records")
    words = ["--suite", parameters.suite, "--tasks", *map(str, parameters.tasks)]
    words += ["--episodes", str(parameters.episodes), "--max-steps", str(parameters.max_steps)]
    return parameters.simulator_python or sys.executable, [*words, "--out", parameters.out]


def main(arguments: list[str] | None = None) -> int:
    """Run the episodes; 0 if all are recorded at the end, 2 if not."""
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node: SimNode | None = None

    def end(number: int, frame: FrameType | None) -> None:
        if node is not None:
            node.told_to_end = signal.Signals(number).name

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    try:
        node = SimNode()
        node.run()
        return 0
    except QvlaError as error:
        print(f"sim_node: {error}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
