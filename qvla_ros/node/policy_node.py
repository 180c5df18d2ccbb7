"""The lifecycle node: topics, timers and transitions around a ``Session``."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.node.command import CommandSource
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.declaration import declare_parameters, read_parameters
from qvla_ros.node.diagnostics import diagnostic_array, idle_status, serving_status
from qvla_ros.node.inputs import Inputs, overridable
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session import Session
from qvla_ros.node.session_settings import NodePolicy
from qvla_ros.node.spinning import wait_until_heard
from qvla_ros.node.verbs import OperatorVerbs
from qvla_ros.policy.health import Verdict
from qvla_ros.policy.memory import require_memory
from qvla_ros.policy.self_test import self_test
from qvla_ros.sensor_messages import SECOND_NS

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
MENDABLE = (QvlaError, ValueError, OSError, RuntimeError, MemoryError, ParameterException)
"""What a configure may fail of and be tried again: torch raises RuntimeError when memory or a
kernel is missing, and rclpy one of the last kind for an override of the QoS of a wrong type."""
LAST_INFERENCE_S = 5.0
"""How long a clean-up waits for an inference under way before it leaves it behind."""

LoadPolicy = Callable[[NodeParameters], NodePolicy]


def newest_only() -> QoSProfile:
    """A profile of its own for each topic: rclpy writes the topic's overrides into it."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class _Logged:
    """Logs what escapes a transition; rclpy would swallow it. The exception goes on its way."""

    def __init__(self, node: LifecycleNode, transition: str) -> None:
        self._node, self._transition = node, transition

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._node.get_logger().error(f"{self._transition}: {kind.__name__}: {error}")


class PolicyNode(LifecycleNode):
    """Turns cameras, robot state and an instruction into action chunks.

    Args:
        load: Makes the policy that the parameters name.
        overrides: Parameters that are given already, as a launch file gives them.
        words: Further words of a command line, e.g. remappings.
    """

    def __init__(
        self,
        load: LoadPolicy,
        overrides: Sequence[Parameter] = (),
        words: Sequence[str] = (),
    ) -> None:
        super().__init__("policy", parameter_overrides=list(overrides), cli_args=list(words))
        self._load = load
        declare_parameters(self, NodeParameters)
        self.add_on_set_parameters_callback(self._refuse_late_change)
        self._session: Session | None = None
        self._commands: CommandSource | None = None
        self._chunks = self._command_publisher = None
        self._inputs: Inputs | None = None
        self._made: list[Callable[[], object]] = []
        self._active = self._paused = False
        self._trouble = ""
        OperatorVerbs(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._heartbeats = self.create_publisher(
            Heartbeat, "~/heartbeat", newest_only(), qos_overriding_options=overridable()
        )
        # A steady clock, so that a paused simulation still reports.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._report, clock=steady)
        period_s = self.get_parameter("heartbeat_period_s").value
        self.create_timer(period_s, self._beat, clock=steady)

    @property
    def active(self) -> bool:
        """Whether the lifecycle state is active, paused or not."""
        return self._active

    @property
    def configured(self) -> bool:
        """Whether there is a policy."""
        return self._session is not None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint, test it and subscribe; on any trouble stay unconfigured."""
        with _Logged(self, "configure"):
            try:
                self._configure(read_parameters(self, NodeParameters))
            except MENDABLE as error:
                self._trouble = f"{type(error).__name__}: {error}"
                self.get_logger().error(f"not configured: {self._trouble}")
                self._release()
                return FAILURE
        self._trouble = ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to infer."""
        with _Logged(self, "activate"):
            super().on_activate(state)
            try:
                self._session.start()
            except ConfigurationError as error:
                self.get_logger().error(f"not activated: {error}")
                super().on_deactivate(state)
                return FAILURE
        self._active, self._paused = True, False
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the loop first, then send a hold: no chunk can follow it."""
        with _Logged(self, "deactivate"):
            self._stop("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the policy and everything made for it."""
        with _Logged(self, "cleanup"):
            self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop as on deactivation, then drop everything."""
        with _Logged(self, "shutdown"):
            self.close("shutdown")
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop, drop everything and go back to unconfigured."""
        self._trouble = "a transition failed; see the log"
        self.close("error")
        return SUCCESS

    def close(self, reason: str) -> None:
        """Stop with a hold if active, and drop the policy; harmless at any time."""
        self._stop(reason)
        self._release()

    def pause(self) -> None:
        """Stay active, but infer nothing and hold; ``ConfigurationError`` if not active."""
        self._require_active()
        self._session.stop("paused")
        self._paused = True
        self._hold_and_forget()

    def resume(self) -> None:
        """Serve on after a pause; ``ConfigurationError`` if not active or faulted."""
        self._require_active()
        if self._paused:
            self._session.start()
            self._paused = False

    def reset(self) -> None:
        """Forget a fault, active or not; ``ConfigurationError`` if that cannot be yet."""
        if self._session is None:
            raise ConfigurationError("the node is not configured")
        self._session.reset(serve=self._active and not self._paused)
        self._hold_and_forget()

    def _require_active(self) -> None:
        if not self._active:
            raise ConfigurationError("the node is not active")

    def _configure(self, parameters: NodeParameters) -> None:
        if not parameters.checkpoint:
            raise ConfigurationError(
                "parameter checkpoint is empty: set it to a packed checkpoint (*.qvla.safetensors)"
            )
        path = Path(parameters.checkpoint)
        reserve_bytes = parameters.memory_reserve_mb * 1_000_000
        require_memory(path, reserve_bytes, device=parameters.device)
        policy = self._load(parameters)
        found = self_test(policy, parameters.self_test_tolerance)
        session = Session(policy, parameters, self._now_ns, self._publish_chunk, self._warn)
        self._chunks = self._publisher(ActionChunk, "~/action_chunk")
        if parameters.publish_command:
            self._commands = CommandSource(session.card)
            self._command_publisher = self._publisher(JointState, "robot/command")
        self._inputs = Inputs(self, session, policy, parameters)
        timer = self.create_timer(policy.period_ns / SECOND_NS, self._tick)
        self._made.append(partial(self.destroy_timer, timer))
        self._session = session
        # A full collection stops every thread, with torch loaded for a third of a second. What is
        # there now stays until the clean-up, so it needs not be looked at before.
        gc.collect()
        gc.freeze()
        self.get_logger().info(
            f"configured: {policy.model_id}, {policy.quant_tag}, {policy.horizon} x "
            f"{len(policy.action_names)} actions, cameras {', '.join(policy.image_names)}; {found}"
        )

    def _publisher(self, kind: type, topic: str) -> object:
        publisher = self.create_lifecycle_publisher(
            kind, topic, newest_only(), qos_overriding_options=overridable()
        )
        self._made.append(partial(self.destroy_lifecycle_publisher, publisher))
        return publisher

    def _tick(self) -> None:
        """At the rate of the actions: look for an observation that waited long enough; command."""
        if not self._active or self._paused or self._session is None:
            return
        now_ns = self._now_ns()
        self._inputs.look_up_transform()
        self._session.ask(now_ns)
        self._command(now_ns)

    def _command(self, now_ns: int) -> None:
        if self._commands is None:
            return
        command = self._commands.command(self._session.scheduler.action_at(now_ns), now_ns)
        if command is not None:
            self._command_publisher.publish(command)

    def _hold_and_forget(self) -> None:
        """One hold, and silence until the next action: until then others may move the robot."""
        if self._commands is not None:
            self._command(self._now_ns())
            self._commands.forget()

    def _beat(self) -> None:
        session = self._session
        message = Heartbeat(state=self._state_word())
        message.header.stamp = ns_to_stamp(self._now_ns())
        if session is not None:
            message.episode_id = session.episode_id
        message.serving = message.state == "serving"
        self._heartbeats.publish(message)

    def _state_word(self) -> str:
        if self._session is None:
            return "unconfigured"
        if self._session.loop.fault_reason is not None:
            return "faulted"
        if not self._active:
            return "inactive"
        if self._paused:
            return "paused"
        return "serving" if self._session.serving else "stopped"

    def _report(self) -> None:
        now_ns = self._now_ns()
        self._diagnostics.publish(diagnostic_array(self._status(now_ns), now_ns))

    def _status(self, now_ns: int) -> DiagnosticStatus:
        name = f"{self.get_fully_qualified_name()}: policy"
        if self._session is None:
            verdict = Verdict.ERROR if self._trouble else Verdict.WARN
            return idle_status(name, self._trouble or "not configured", verdict)
        if self._active and not self._paused:
            return serving_status(name, self._session, now_ns)
        idle = "paused" if self._active else "configured, not active"
        fault = self._session.loop.fault_reason
        if fault is None:
            return idle_status(name, idle, Verdict.OK)
        return idle_status(name, f"{idle}; faulted: {fault}", Verdict.ERROR)

    def _stop(self, reason: str) -> None:
        if not self._active:
            return
        self._active = False
        if not self._session.stop(reason):
            self.get_logger().warning("an inference is still under way; its answer is refused")
        self._hold_and_forget()
        # The publishers may be destroyed next; the holds must have left by then.
        wait_until_heard(*filter(None, (self._command_publisher, self._chunks)))
        self.get_logger().info(f"stopped: {reason}")

    def _release(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        if self._session is not None:
            self._session.stop("released", LAST_INFERENCE_S)
        while self._made:
            self._made.pop()()
        self._session = self._commands = self._chunks = self._command_publisher = None
        self._inputs = None
        gc.unfreeze()

    def _refuse_late_change(self, changes: list[Parameter]) -> SetParametersResult:
        ours = set(NodeParameters.__dataclass_fields__)
        late = [change.name for change in changes if change.name in ours]
        if self._session is None or not late:
            return SetParametersResult(successful=True)
        reason = f"{', '.join(late)} can only be changed while the node is unconfigured"
        return SetParametersResult(successful=False, reason=reason)

    def _publish_chunk(self, message: ActionChunk) -> None:
        self._chunks.publish(message)

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=1.0)

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds
