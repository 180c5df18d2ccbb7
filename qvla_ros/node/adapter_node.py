"""Follows action chunks and commands controllers; a process of its own, and dry unless told."""

import time
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, KeyValue
from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.node.adapter_outputs import (
    OUTPUTS,
    Output,
    TrajectoryOutput,
    gripper_command,
    preview_path,
)
from qvla_ros.node.adapter_parameters import AdapterParameters
from qvla_ros.node.chunk_follower import ChunkFollower, FollowedChunk
from qvla_ros.node.declaration import declare_parameters, read_parameters
from qvla_ros.node.diagnostics import Finding, diagnostic_array, idle_status
from qvla_ros.node.spinning import run_node, wait_until_heard
from qvla_ros.policy.health import Verdict


class AdapterNode(Node):
    """Turns ``action_chunk`` into the messages of one controller and a gripper.

    Args:
        overrides: Parameters that are given already, as a launch file gives them.

    Raises:
        ConfigurationError: A parameter is not allowed.
    """

    def __init__(self, overrides: Sequence[Parameter] = ()) -> None:
        super().__init__("adapter", parameter_overrides=list(overrides))
        declare_parameters(self, AdapterParameters)
        self._parameters = read_parameters(self, AdapterParameters)
        self._follower = ChunkFollower(self._parameters.heartbeat_timeout_ns)
        self._output: Output = OUTPUTS[self._parameters.output](self._parameters)
        prefix = "~/dry_run/" if self._parameters.dry_run else ""
        self._commands = self.create_publisher(
            self._output.kind, prefix + self._output.topic, QoSProfile(depth=1)
        )
        self._gripper = self.create_publisher(Float64, f"{prefix}gripper/command", 1)
        self._preview = self.create_publisher(Path, "~/preview", 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._sent, self._trouble = 0, ""
        self._listen()
        # Steady: a robot must also be stopped while the simulated clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / self._parameters.rate_hz, self._tick, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        mode = "dry run" if self._parameters.dry_run else "LIVE"
        self.get_logger().info(f"{mode}: {self._parameters.output} on {self._commands.topic_name}")

    def close(self, reason: str) -> None:
        """Send the stop, as often as its output repeats it, and wait until it has arrived."""
        now_ns = self._now_ns()
        while (stop := self._output.on_tick(None, now_ns)) is not None:
            self._send(stop)
        wait_until_heard(self._commands)
        if isinstance(self._output, TrajectoryOutput) and self._output.blindness(now_ns):
            self.get_logger().error(self._output.blindness(now_ns))
        self.get_logger().info(f"stopped: {reason}")

    def _listen(self) -> None:
        self.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, 1)
        self.create_subscription(Heartbeat, "policy/heartbeat", self._on_heartbeat, 1)
        if isinstance(self._output, TrajectoryOutput):
            self.create_subscription(
                JointState, "joint_states", self._on_joints, qos_profile_sensor_data
            )

    def _on_chunk(self, message: ActionChunk) -> None:
        now_ns = self._now_ns()
        chunk = self._follower.take(message, now_ns)
        if chunk is None:
            self._tick()  # a hold, or none at all: the stop must not wait
            return
        try:
            command = self._output.on_chunk(chunk)
        except ConfigurationError as error:
            self._trouble = str(error)
            self.get_logger().error(self._trouble, throttle_duration_sec=1.0)
            return
        self._trouble = ""
        path = preview_path(chunk)
        if path is not None:
            self._preview.publish(path)
        if self._follower.is_alive(time.monotonic_ns()):
            self._send(command)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follower.beat(message, time.monotonic_ns())

    def _on_joints(self, message: JointState) -> None:
        self._output.on_joints(message, self._now_ns())

    def _tick(self) -> None:
        now_ns = self._now_ns()
        chunk = None if self._trouble else self._follower.due(now_ns, time.monotonic_ns())
        self._send(self._output.on_tick(chunk, now_ns))
        if chunk is not None and self._parameters.gripper:
            self._send_gripper(chunk, now_ns)

    def _send(self, command: object | None) -> None:
        if command is not None:
            self._sent += 1
            self._commands.publish(command)

    def _send_gripper(self, chunk: FollowedChunk, now_ns: int) -> None:
        command = gripper_command(chunk, now_ns, self._parameters)
        if command is not None:
            self._gripper.publish(command)

    def _report(self) -> None:
        now_ns = self._now_ns()
        findings = self._findings(now_ns)
        following = self._follower.due(now_ns, time.monotonic_ns()) is not None
        text = "; ".join(text for _, text in findings) or ("following" if following else "holding")
        verdict = max((verdict for verdict, _ in findings), default=Verdict.OK)
        status = idle_status(f"{self.get_fully_qualified_name()}: adapter", text, verdict)
        values = {"dry_run": str(self._parameters.dry_run), "sent": str(self._sent)}
        values |= {f"refused_{why}": str(n) for why, n in self._follower.refused.items()}
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        self._diagnostics.publish(diagnostic_array(status, now_ns))

    def _findings(self, now_ns: int) -> list[Finding]:
        findings = []
        if self._trouble:
            findings.append((Verdict.ERROR, self._trouble))
        if isinstance(self._output, TrajectoryOutput) and not self._parameters.dry_run:
            blindness = self._output.blindness(now_ns)
            if blindness:
                findings.append((Verdict.ERROR, blindness))
        if not self._follower.is_alive(time.monotonic_ns()):
            findings.append((Verdict.WARN, "no heartbeat of the policy node"))
        return findings

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def main(arguments: list[str] | None = None) -> int:
    """Spin an ``AdapterNode``; SIGINT and SIGTERM stop the robot. Returns the exit status."""
    return run_node(AdapterNode, AdapterNode.close, arguments)
