"""A configured policy and all that belongs to its service, from configure to clean-up."""

import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.conversions import Asked, Delivery, chunk_message, hold_message
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session_settings import (
    NodePolicy,
    chunk_strategy,
    loop_settings,
    orientations,
    policy_card,
    scheduler_settings,
    state_names,
    sync_settings,
)
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.frame_sync import (
    STATE,
    FrameSync,
    Sample,
    UnusableSampleError,
    camera_source,
    observe,
)
from qvla_ros.policy.health import LoopState
from qvla_ros.policy.inference_loop import Answer, InferenceLoop
from qvla_ros.policy.pose_state import POSE, uses_joints, uses_pose, with_pose
from qvla_ros.policy.reasons import DropReason
from qvla_ros.sensor_messages import SECOND_NS


class Session:
    """Takes messages in, and hands chunks and holds to ``publish``.

    Called from the executor's thread only; ``publish`` is also called from the worker's.

    Args:
        policy: What answers the observations.
        parameters: The node's parameters.
        clock_ns: The node's clock, nanoseconds.
        publish: Sends a chunk or a hold.
        warn: Tells the operator of a message that could not be used.

    Raises:
        ConfigurationError: The parameters do not fit the policy.
    """

    def __init__(
        self,
        policy: NodePolicy,
        parameters: NodeParameters,
        clock_ns: Callable[[], int],
        publish: Callable[[ActionChunkMessage], None],
        warn: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._parameters = parameters
        self._clock_ns = clock_ns
        self._publish = publish
        self._warn = warn
        self.card = policy_card(policy, parameters)
        self.state_names = state_names(policy, parameters)
        self._orientations = orientations(policy, parameters)
        self.scheduler = ChunkScheduler(
            scheduler_settings(policy, parameters), chunk_strategy(self.card, policy.horizon)
        )
        self.loop: InferenceLoop[Asked] = InferenceLoop(
            policy, self.scheduler, self._deliver, clock_ns, loop_settings(parameters)
        )
        anchor, *others = map(camera_source, policy.image_names)
        others += [STATE] if uses_joints(self.state_names) else []
        others += [POSE] if uses_pose(self.state_names) else []
        self.sync = FrameSync(anchor, others, sync_settings(policy, parameters))
        self._serving = False
        # Guards what makes a message old: without it a chunk of the old instruction could be sent
        # after the hold that revokes it. The scheduler's own lock is taken inside of it.
        self._sending = threading.Lock()
        self._episode_id = 0
        self._seq = itertools.count()
        self._fault_ns: int | None = None

    @property
    def episode_id(self) -> int:
        """Number of the present episode; chunks of a lower one are revoked."""
        return self._episode_id

    @property
    def serving(self) -> bool:
        """Whether observations are answered: started, and the loop neither stopped nor faulted."""
        return self._serving and self.loop.state is LoopState.RUNNING

    def start(self) -> None:
        """Begin to serve; ``ConfigurationError`` if a fault is latched or inferences hang."""
        self.loop.start()
        self.sync.clear()
        self._seq = itertools.count()
        self._episode_id += 1
        self._fault_ns = None
        self._serving = True

    def stop(self, reason: str, timeout_s: float = 0.0) -> bool:
        """Stop the loop, and only then send a hold.

        Args:
            reason: The hold's.
            timeout_s: How long to wait for the inference under way; its answer is refused anyhow.

        Returns:
            Whether it ended in time.
        """
        was_serving, self._serving = self._serving, False
        ended = self.loop.stop(timeout_s)
        if was_serving:
            self._revoke(reason)
        return ended

    def reset(self, serve: bool) -> None:
        """Forget a fault, an inference that hangs, and everything sensed.

        Args:
            serve: Whether to serve on, with a new worker.

        Raises:
            ConfigurationError: The fault is too fresh, or too many inferences hang.
        """
        left_s = self._cooldown_left_s()
        if left_s > 0:
            raise ConfigurationError(f"the fault is fresh: wait {left_s:.1f} s, then reset again")
        self.stop("reset")
        self.loop.reset_fault()
        self._fault_ns = None
        if serve:
            self.start()

    def instruct(self, text: str, now_ns: int) -> None:
        """Take the instruction; another one than before revokes all chunks."""
        if self.sync.instruct(text, now_ns) and self._serving:
            self._revoke("instruction_changed")

    def add(self, source: str, sample: Sample, now_ns: int) -> None:
        """Take a camera's or the robot state's message; ignored while not serving."""
        if not self._serving or self._clock_jumped(now_ns):
            return
        if self.sync.add(source, sample, now_ns):
            self.ask(now_ns)

    def refuse(self, source: str, reason: str) -> None:
        """Count and tell a message that cannot be used."""
        self.sync.count("bad_message")
        self._warn(f"dropped: {source}: {reason}")

    def ask(self, now_ns: int) -> None:
        """Hand the newest synchronous observation to the policy if one is due."""
        if not self._serving or self._clock_jumped(now_ns) or self._faulted(now_ns):
            return
        frame = self.sync.take(now_ns)
        if frame is None:
            return
        frame = with_pose(frame)
        try:
            observation = observe(frame, self._orientations, self.state_names)
        except UnusableSampleError as error:
            self.refuse(error.source, str(error))
            return
        self.sync.used(frame)
        state = frame.samples.get(STATE)
        state_ns = 0 if state is None else state.stamp_ns
        asked = Asked(frame.instruction, frame.instruction_ns, state_ns, self._episode_id)
        self.loop.offer(observation, asked)

    def _deliver(self, answer: Answer[Asked]) -> None:
        """Send an accepted chunk; runs on the worker's thread."""
        chunk, acceptance = answer.acceptance.planned, answer.acceptance
        if chunk is None:
            raise ValueError("an accepted chunk has a plan")
        jump = math.nan
        if acceptance.seam_jump is not None:
            jump = float(np.max(acceptance.seam_jump))
        with self._sending:
            now_ns = self._clock_ns()
            valid_until_ns = self.scheduler.valid_until_ns(chunk)
            if answer.about.episode_id != self._episode_id:
                return
            if now_ns >= valid_until_ns:  # the worker was kept waiting since it was accepted
                self.scheduler.drop(DropReason.EXPIRED)
                return
            delivery = Delivery(
                next(self._seq),
                now_ns,
                valid_until_ns,
                jump,
                answer.inference.stage_ms,
                acceptance.clipped_count,
                answer.accepted_ns,
            )
            self._publish(chunk_message(chunk, self.card, answer.about, delivery))

    def _revoke(self, reason: str) -> None:
        """Begin a new episode: all chunks before it are void, here and for who listens."""
        with self._sending:
            self._episode_id += 1
            self.scheduler.flush(reason)
            now_ns = self._clock_ns()
            asked = Asked(self.sync.instruction, self.sync.instruction_ns, 0, self._episode_id)
            delivery = Delivery(next(self._seq), now_ns, now_ns, math.nan, {})
            self._publish(hold_message(reason, self.card, asked, delivery))

    def _clock_jumped(self, now_ns: int) -> bool:
        if not self.sync.clock_jumped_back(now_ns):
            return False
        self._revoke("clock_jumped_back")
        return True

    def _faulted(self, now_ns: int) -> bool:
        if self.loop.state is not LoopState.FAULTED:
            return False
        if self._fault_ns is None:
            self._fault_ns = now_ns
            self._warn(f"the policy is faulted: {self.loop.fault_reason}")
            self._revoke("faulted")
        return True

    def _cooldown_left_s(self) -> float:
        if self._fault_ns is None:
            return 0.0
        passed_s = (self._clock_ns() - self._fault_ns) / SECOND_NS
        # A clock that was set back must not make the cooldown longer.
        return self._parameters.reset_cooldown_s - passed_s if passed_s >= 0 else 0.0
