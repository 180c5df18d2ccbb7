"""The lifecycle node: topics, timers and transitions around a ``Session``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.msg import ActionChunk
from qvla_ros.node.command import CommandSource
from qvla_ros.node.conversions import SECOND_NS, stamp_to_ns
from qvla_ros.node.diagnostics import diagnostic_array, health_status, idle_status
from qvla_ros.node.observation_buffer import Sample
from qvla_ros.node.parameters import NodeParameters, declare_parameters, read_parameters
from qvla_ros.node.session import STATE, NodePolicy, Session, camera_source
from qvla_ros.policy.health import Verdict

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
NEWEST_ONLY = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

LoadPolicy = Callable[[Path, int | None], NodePolicy]


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
        load: Makes a policy of a checkpoint's path and a number of threads (``None``: any).
        overrides: Parameters that are given already, as a launch file gives them.
    """

    def __init__(self, load: LoadPolicy, overrides: Sequence[Parameter] = ()) -> None:
        super().__init__("policy", parameter_overrides=list(overrides))
        self._load = load
        declare_parameters(self)
        self.add_on_set_parameters_callback(self._refuse_late_change)
        self._session: Session | None = None
        self._commands: CommandSource | None = None
        self._chunks = self._command_publisher = None
        self._made: list[Callable[[], object]] = []
        self._active = False
        self._trouble = ""
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that a paused simulation still reports.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(1.0, self._report, clock=steady)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint and subscribe; on any trouble stay unconfigured and say why."""
        with _Logged(self, "configure"):
            try:
                parameters = read_parameters(self)
                self._configure(parameters)
            except (QvlaError, ValueError, OSError, RuntimeError, MemoryError) as error:
                # RuntimeError is what torch raises when memory or a kernel is missing.
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
        self._active = True
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

    def _configure(self, parameters: NodeParameters) -> None:
        if not parameters.checkpoint:
            raise ConfigurationError(
                "parameter checkpoint is empty: set it to a packed checkpoint (*.qvla.safetensors)"
            )
        policy = self._load(Path(parameters.checkpoint), parameters.threads or None)
        self._chunks = self.create_lifecycle_publisher(
            ActionChunk, "~/action_chunk", NEWEST_ONLY, qos_overriding_options=_overridable()
        )
        self._made.append(partial(self.destroy_lifecycle_publisher, self._chunks))
        self._session = Session(policy, parameters, self._now_ns, self._publish_chunk, self._warn)
        if parameters.publish_command:
            self._commands = CommandSource(self._session.card)
            publisher = self.create_lifecycle_publisher(JointState, "robot/command", NEWEST_ONLY)
            self._command_publisher = publisher
            self._made.append(partial(self.destroy_lifecycle_publisher, publisher))
        self._subscribe(policy, parameters)
        service = self.create_service(Trigger, "~/reset", self._reset)
        self._made.append(partial(self.destroy_service, service))
        timer = self.create_timer(policy.period_ns / SECOND_NS, self._tick)
        self._made.append(partial(self.destroy_timer, timer))
        self.get_logger().info(
            f"configured: {policy.model_id}, {policy.quant_tag}, {policy.horizon} x "
            f"{len(policy.action_names)} actions, cameras {', '.join(policy.image_names)}"
        )

    def _subscribe(self, policy: NodePolicy, parameters: NodeParameters) -> None:
        compressed = parameters.image_transport == "compressed"
        kind, ending = (CompressedImage, "/compressed") if compressed else (Image, "")
        for name in policy.image_names:
            topic = f"camera/{name}/image_raw{ending}"
            self._listen(kind, topic, partial(self._on_sample, camera_source(name)))
        self._listen(JointState, "robot/state", partial(self._on_sample, STATE))
        self._listen(String, "instruction", self._on_instruction, LATCHED)

    def _listen(
        self,
        kind: type,
        topic: str,
        callback: Callable,
        qos: QoSProfile = qos_profile_sensor_data,
    ) -> None:
        subscription = self.create_subscription(
            kind, topic, callback, qos, qos_overriding_options=_overridable()
        )
        self._made.append(partial(self.destroy_subscription, subscription))

    def _on_sample(self, source: str, message: Image | CompressedImage | JointState) -> None:
        if self._session is not None:  # a callback may be due when its subscription is destroyed
            sample = Sample(stamp_to_ns(message.header.stamp), message)
            self._session.add(source, sample, self._now_ns())

    def _on_instruction(self, message: String) -> None:
        if self._session is not None:
            self._session.instruct(message.data, self._now_ns())

    def _tick(self) -> None:
        """At the rate of the actions: look for an observation that waited long enough; command."""
        if not self._active:
            return
        now_ns = self._now_ns()
        self._session.ask(now_ns)
        self._command(now_ns)

    def _command(self, now_ns: int) -> None:
        if self._commands is None:
            return
        command = self._commands.command(self._session.scheduler.action_at(now_ns), now_ns)
        if command is not None:
            self._command_publisher.publish(command)

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._active:
            response.message = "the node is not active"
            return response
        try:
            self._session.reset()
        except ConfigurationError as error:
            response.message = str(error)
            return response
        response.success, response.message = True, "a new episode begins"
        return response

    def _report(self) -> None:
        now_ns = self._now_ns()
        self._diagnostics.publish(diagnostic_array(self._status(now_ns), now_ns))

    def _status(self, now_ns: int) -> DiagnosticStatus:
        name = f"{self.get_fully_qualified_name()}: policy"
        if self._session is None:
            verdict = Verdict.ERROR if self._trouble else Verdict.WARN
            return idle_status(name, self._trouble or "not configured", verdict)
        if not self._active:
            return idle_status(name, "configured, not active", Verdict.OK)
        session = self._session
        return health_status(
            name,
            f"{session.card.model_id} {session.card.quant_tag}",
            session.loop.health(now_ns),
            session.buffer.drops,
            session.waiting_for(now_ns),
        )

    def _stop(self, reason: str) -> None:
        if not self._active:
            return
        self._active = False
        if not self._session.stop(reason):
            self.get_logger().warning("an inference is still under way; its answer is refused")
        self._command(self._now_ns())
        # The publisher may be destroyed next; the hold must have left by then.
        self._chunks.wait_for_all_acked(Duration(seconds=0.5))
        self.get_logger().info(f"stopped: {reason}")

    def _release(self) -> None:
        while self._made:
            self._made.pop()()
        self._session = self._commands = self._chunks = self._command_publisher = None

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


def _overridable() -> QoSOverridingOptions:
    return QoSOverridingOptions.with_default_policies()
