"""A node between sensors and policy that spoils what it passes on, to see what then happens."""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.declaration import declare_parameters, read_parameters
from qvla_ros.node.diagnostics import diagnostic_array, idle_status
from qvla_ros.node.fault_parameters import FaultParameters
from qvla_ros.node.fault_plan import FaultPlan
from qvla_ros.node.spinning import run_node
from qvla_ros.policy.health import Verdict

FLUSH_S = 0.002
"""How exactly late messages leave."""


class FaultInjector(Node):
    """Sends ``NAME`` on as ``faulty/NAME``, spoilt; the counts are on ``/diagnostics``.

    Args:
        overrides: Parameters that are given already, as a launch file gives them.

    Raises:
        ConfigurationError: A parameter is not allowed, or a type of message is unknown.
    """

    def __init__(self, overrides: Sequence[Parameter] = ()) -> None:
        super().__init__("fault_injector", parameter_overrides=list(overrides))
        declare_parameters(self, FaultParameters)
        parameters = read_parameters(self, FaultParameters)
        self._plan = FaultPlan(parameters)
        self._senders = {}
        for entry in parameters.topics:
            topic, _, name = entry.partition(":")
            kind = message_type(name)
            self._senders[topic] = self.create_publisher(
                kind, f"faulty/{topic}", QoSProfile(depth=10)
            )
            callback = partial(self._on_message, topic)
            self.create_subscription(kind, topic, callback, qos_profile_sensor_data)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(FLUSH_S, self._flush, clock=self._steady)
        self.create_timer(1.0, self._report, clock=self._steady)

    def close(self, reason: str) -> None:
        """Tell the counts a last time."""
        self._report()
        self.get_logger().info(f"stopped: {reason}; injected {dict(self._plan.counts)}")

    def _on_message(self, topic: str, message: object) -> None:
        self._plan.take(topic, message, self._steady.now().nanoseconds)
        self._flush()

    def _flush(self) -> None:
        for topic, message in self._plan.due(self._steady.now().nanoseconds):
            self._senders[topic].publish(message)

    def _report(self) -> None:
        counts = self._plan.counts
        text = f"{sum(counts.values())} faults injected"
        status = idle_status(f"{self.get_fully_qualified_name()}: faults", text, Verdict.OK)
        status.values = [KeyValue(key=key, value=str(n)) for key, n in sorted(counts.items())]
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostic_array(status, now_ns))


def message_type(name: str) -> type:
    """The class of ``package/msg/Type``; ``ConfigurationError`` if there is none."""
    package, _, kind = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"parameter topics: {name!r} is no known message; write NAME:package/msg/Type"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Spin a ``FaultInjector`` until SIGINT or SIGTERM. Returns the exit status."""
    return run_node(FaultInjector, FaultInjector.close, arguments)


if __name__ == "__main__":
    sys.exit(main())
