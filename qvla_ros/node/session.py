"""A configured policy and all that belongs to its service, from configure to clean-up."""

import itertools
import math
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.conversions import (
    SECOND_NS,
    Asked,
    Delivery,
    PolicyCard,
    chunk_message,
    hold_message,
    image_to_rgb,
    state_from_message,
)
from qvla_ros.node.observation_buffer import (
    ObservationBuffer,
    Sample,
    SyncedSamples,
    SyncSettings,
)
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import ChunkScheduler, SchedulerSettings
from qvla_ros.policy.health import LoopState
from qvla_ros.policy.inference import Inference, ServedPolicy
from qvla_ros.policy.inference_loop import InferenceLoop, LoopSettings

STATE = "state"


class NodePolicy(ServedPolicy, Protocol):
    """What the node needs to know of a policy, beside how to run it."""

    model_id: str
    checkpoint_sha256: str
    quant_tag: str
    image_names: tuple[str, ...]
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]


def camera_source(name: str) -> str:
    """The name under which a camera's samples are buffered and counted."""
    return f"camera_{name}"


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
        self.card = _card(policy, parameters)
        self._state_names = _state_names(policy, parameters)
        self.scheduler = ChunkScheduler(_scheduler_settings(policy, parameters))
        settings = LoopSettings(parameters.warmup_count, failure_limit=parameters.failure_limit)
        self.loop = InferenceLoop(policy, self.scheduler, self._deliver, clock_ns, settings)
        first, *others = map(camera_source, policy.image_names)
        self.buffer = ObservationBuffer(first, [*others, STATE], _sync_settings(parameters))
        horizon_ns = policy.horizon * policy.period_ns
        self._request_period_ns = _ns(parameters.request_period_s) or horizon_ns // 2
        self._instruction, self._instruction_ns = "", 0
        self._asked: dict[int, Asked] = {}
        self._due_ns = 0
        self._serving = False
        # Guards what makes a message old: without it a chunk of the old instruction could be sent
        # after the hold that revokes it. The scheduler's own lock is taken inside of it.
        self._sending = threading.Lock()
        self._episode_id = 0
        self._seq = itertools.count()
        self._fault_told = False

    @property
    def instruction(self) -> str:
        """What the robot is asked to do; empty if it was not told yet."""
        return self._instruction

    def start(self) -> None:
        """Begin to serve; ``ConfigurationError`` if a fault is latched or the worker is busy."""
        self.buffer.clear()
        self._due_ns = 0
        self._seq = itertools.count()
        self._episode_id += 1
        self._fault_told = False
        self.loop.start()
        self._serving = True

    def stop(self, reason: str, timeout_s: float = 5.0) -> bool:
        """Stop the loop, and only then send a hold.

        Returns:
            Whether the inference under way ended in time; its answer is refused in any case.
        """
        if not self._serving:
            return True
        self._serving = False
        ended = self.loop.stop(timeout_s)
        self._revoke(reason)
        return ended

    def reset(self) -> None:
        """Forget a fault and everything sensed, and serve on; does nothing while not serving."""
        if not self._serving:
            return
        self.stop("reset")
        self.loop.reset_fault()
        self.start()

    def instruct(self, text: str, now_ns: int) -> None:
        """Take the instruction; another one than before revokes all chunks."""
        if text == self._instruction:
            return
        is_change = self._instruction != ""
        self._instruction, self._instruction_ns = text, now_ns
        if is_change and self._serving:
            self._due_ns = 0
            self._revoke("instruction_changed")

    def add(self, source: str, sample: Sample, now_ns: int) -> None:
        """Take a camera's or the robot state's message; ignored while not serving."""
        if not self._serving or self._clock_jumped(now_ns):
            return
        if self.buffer.add(source, sample, now_ns):
            self.ask(now_ns)

    def ask(self, now_ns: int) -> None:
        """Hand the newest synchronous observation to the policy if one is due."""
        if not self._serving or self._clock_jumped(now_ns) or self._faulted():
            return
        synced = self.buffer.take(now_ns, self._due_ns)
        if synced is None:
            return
        self._due_ns = synced.anchor_ns + 1
        if not self._instruction:
            self.buffer.count("missing_instruction")
            return
        try:
            observation = self._observation(synced)
        except (ConfigurationError, ValueError) as error:
            self.buffer.count("bad_message")
            self._warn(f"an observation was dropped: {error}")
            return
        self._remember(observation, synced, now_ns)
        # A quarter of a step of tolerance, lest a jitter of the stamps costs a whole frame.
        self._due_ns = synced.anchor_ns + self._request_period_ns - self._policy.period_ns // 4
        self.loop.offer(observation)

    def waiting_for(self, now_ns: int) -> list[str]:
        """The inputs that are missing now."""
        missing = self.buffer.waiting_for(now_ns)
        return missing if self._instruction else [*missing, "instruction"]

    def _observation(self, synced: SyncedSamples) -> Observation:
        images = {
            name: image_to_rgb(synced.samples[camera_source(name)].message)
            for name in self._policy.image_names
        }
        state = state_from_message(synced.samples[STATE].message, self._state_names)
        return Observation(synced.oldest_ns, images, state, self._instruction)

    def _remember(self, observation: Observation, synced: SyncedSamples, now_ns: int) -> None:
        # Twice the time to live: a chunk that is just being accepted must still be known.
        oldest = now_ns - 2 * self.scheduler.settings.ttl_ns
        for stamp_ns in [stamp_ns for stamp_ns in self._asked if stamp_ns < oldest]:
            del self._asked[stamp_ns]
        self._asked[observation.stamp_ns] = Asked(
            observation.instruction,
            self._instruction_ns,
            synced.samples[STATE].stamp_ns,
            self._episode_id,
        )

    def _deliver(self, inference: Inference) -> None:
        """Send an accepted chunk; runs on the worker's thread."""
        chunk, acceptance = inference.chunk, self.scheduler.last_acceptance
        asked = self._asked[chunk.observed_at_ns]
        jump = math.nan
        if acceptance is not None and acceptance.seam_jump is not None:
            jump = float(np.max(acceptance.seam_jump))
        valid_until_ns = self.scheduler.valid_until_ns(chunk)
        with self._sending:
            if asked.episode_id != self._episode_id:
                return
            now_ns = self._clock_ns()
            delivery = Delivery(next(self._seq), now_ns, valid_until_ns, jump, inference.stage_ms)
            self._publish(chunk_message(chunk, self.card, asked, delivery))

    def _revoke(self, reason: str) -> None:
        """Begin a new episode: all chunks before it are void, here and for who listens."""
        with self._sending:
            self._episode_id += 1
            self.scheduler.flush(reason)
            now_ns = self._clock_ns()
            asked = Asked(self._instruction, self._instruction_ns, 0, self._episode_id)
            delivery = Delivery(next(self._seq), now_ns, now_ns, math.nan, {})
            self._publish(hold_message(reason, self.card, asked, delivery))

    def _clock_jumped(self, now_ns: int) -> bool:
        if not self.buffer.clock_jumped_back(now_ns):
            return False
        self._due_ns = 0
        self._revoke("clock_jumped_back")
        return True

    def _faulted(self) -> bool:
        if self.loop.state is not LoopState.FAULTED:
            return False
        if not self._fault_told:
            self._fault_told = True
            self._warn(f"the policy is faulted: {self.loop.fault_reason}")
            self._revoke("faulted")
        return True


def _ns(seconds: float) -> int:
    return round(seconds * SECOND_NS)


def _state_names(policy: NodePolicy, parameters: NodeParameters) -> tuple[str, ...]:
    names = parameters.chosen_state_names or policy.state_names
    if len(names) != len(policy.state_names):
        raise ConfigurationError(
            f"parameter state_names has {len(names)} names, the model wants "
            f"{len(policy.state_names)} ({', '.join(policy.state_names)})"
        )
    return names


def _card(policy: NodePolicy, parameters: NodeParameters) -> PolicyCard:
    card = PolicyCard(
        model_id=policy.model_id,
        checkpoint_sha256=policy.checkpoint_sha256,
        quant_tag=policy.quant_tag,
        action_names=tuple(policy.action_names),
        parameters=parameters,
    )
    card.gripper_index  # noqa: B018  a wrong name is to be told now, not with the first chunk
    return card


def _scheduler_settings(policy: NodePolicy, parameters: NodeParameters) -> SchedulerSettings:
    return SchedulerSettings(
        ttl_ns=_ns(parameters.chunk_ttl_s) or policy.horizon * policy.period_ns,
        max_observation_age_ns=_ns(parameters.max_observation_age_s),
        future_tolerance_ns=_ns(parameters.future_tolerance_s),
    )


def _sync_settings(parameters: NodeParameters) -> SyncSettings:
    return SyncSettings(
        max_age_ns=_ns(parameters.max_observation_age_s),
        max_skew_ns=_ns(parameters.max_skew_s),
        wait_ns=_ns(parameters.sync_wait_s),
        future_tolerance_ns=_ns(parameters.future_tolerance_s),
    )
