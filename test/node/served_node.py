"""A policy node in the test's own process, with a policy that can be foreseen."""

from collections.abc import Mapping

from fake_policy import FakePolicy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.policy_node import PolicyNode

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class Served:
    """A policy node, its policy, and the errors that loading is to raise."""

    def __init__(
        self, robot, remaps: Mapping[str, str] | None = None, **parameters: object
    ) -> None:
        self.policy = FakePolicy()
        self.loading_error: Exception | None = None
        given = {"checkpoint": "a.qvla.safetensors", **parameters}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        words = [word for old, new in (remaps or {}).items() for word in ("-r", f"{old}:={new}")]
        self.node = PolicyNode(self._load, overrides, ["--ros-args", *words] if words else [])
        robot.executor_of_all.add_node(self.node)

    def _load(self, parameters: NodeParameters) -> FakePolicy:
        if self.loading_error is not None:
            raise self.loading_error
        return self.policy

    def close(self) -> None:
        self.policy.gate.set()
        self.node.close("end of test")
        self.node.destroy_node()
        # rclpy leaves the lifecycle's services behind; a node of the same name would not be heard.
        self.node._state_machine.destroy_when_not_in_use()

    def activate(self) -> None:
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS

    def drops(self) -> dict[str, int]:
        session = self.node._session
        health = session.loop.health(self.node._now_ns())
        return {**health.drops, **session.sync.drops}
