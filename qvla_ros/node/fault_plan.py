"""What becomes of each message under given faults; pure: time and chance are arguments."""

import copy
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, Image, JointState

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.fault_parameters import FaultParameters
from qvla_ros.sensor_messages import SECOND_NS, stamp_to_ns

UNKNOWN = "16UC1"
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
IMAGES = (Image, CompressedImage)


class FaultPlan:
    """Messages in, the same or others out, now or later; everything done to them is counted.

    Messages are spoilt as their kind can be: images, joint states, poses and the clock. Others, and
    a state without positions, come late, twice or not at all, but with what they said.

    Args:
        parameters: What to do, and how often.
    """

    def __init__(self, parameters: FaultParameters) -> None:
        self._parameters = parameters
        self._random = random.Random(parameters.seed)
        self._held_back: dict[str, Any] = {}
        self._clock_offset_ns = 0
        self._later: list[tuple[int, int, str, Any]] = []
        self._order = itertools.count()
        self.counts: Counter[str] = Counter()

    def take(self, topic: str, message: Any, now_ns: int) -> None:
        """Decide about a message; it comes out of ``due`` when its time has come."""
        parameters = self._parameters
        if self._is_paused(now_ns):
            self.counts["pause"] += 1
        elif self._happens("drop", parameters.drop):
            pass
        else:
            message = self._spoilt(message)
            if topic not in self._held_back and self._happens("reorder", parameters.reorder):
                self._held_back[topic] = message
                return
            self._schedule(topic, message, now_ns)
        if topic in self._held_back:
            self._schedule(topic, self._held_back.pop(topic), now_ns)

    def due(self, now_ns: int) -> Iterator[tuple[str, Any]]:
        """Topics and messages to be sent by now, in the order of their time."""
        while self._later and self._later[0][0] <= now_ns:
            _, _, topic, message = heapq.heappop(self._later)
            yield topic, message

    def forget(self) -> None:
        """Drop what was to be sent later: the clock jumped."""
        self._later.clear()

    def _schedule(self, topic: str, message: Any, now_ns: int) -> None:
        parameters, late_s = self._parameters, 0.0
        if parameters.jitter_s > 0:
            late_s = self._random.uniform(0.0, parameters.jitter_s)
        if self._happens("delay", parameters.delay):
            late_s += parameters.delay_s
        at_ns = now_ns + round(late_s * SECOND_NS)
        for _ in range(2 if self._happens("duplicate", parameters.duplicate) else 1):
            heapq.heappush(self._later, (at_ns, next(self._order), topic, message))

    def _spoilt(self, message: Any) -> Any:
        parameters = self._parameters
        if hasattr(message, "clock"):
            return self._jumped_clock(message)
        if hasattr(message, "header") and self._happens("stamp_jump", parameters.stamp_jump):
            message = self._jumped_stamp(message)
        is_state = isinstance(message, JointState) and len(message.position) > 0
        if is_state or isinstance(message, IMAGES):
            if self._happens("bad_encoding", parameters.bad_encoding):
                return with_bad_encoding(message)
            if self._happens("bad_size", parameters.bad_size):
                return with_bad_size(message)
        if is_state and self._happens("not_finite", parameters.not_finite):
            return self._not_finite_state(message)
        if isinstance(message, PoseStamped) and self._happens("not_finite", parameters.not_finite):
            return self._not_finite_pose(message)
        return message

    def _not_finite_state(self, message: JointState) -> JointState:
        message = copy.copy(message)
        values = list(message.position)
        values[self._random.randrange(len(values))] = self._random.choice(NOT_FINITE)
        message.position = values
        return message

    def _not_finite_pose(self, message: PoseStamped) -> PoseStamped:
        message = copy.deepcopy(message)
        part = self._random.choice([message.pose.position, message.pose.orientation])
        setattr(part, self._random.choice("xyz"), self._random.choice(NOT_FINITE))
        return message

    def _jumped_stamp(self, message: Any) -> Any:
        jump_ns = round(self._parameters.stamp_jump_s * SECOND_NS)
        stamp_ns = stamp_to_ns(message.header.stamp)
        message = copy.copy(message)
        message.header = copy.copy(message.header)
        message.header.stamp = ns_to_stamp(
            max(0, stamp_ns + self._random.choice([-jump_ns, jump_ns]))
        )
        return message

    def _jumped_clock(self, message: Any) -> Any:
        if self._happens("stamp_jump", self._parameters.stamp_jump):
            jump_ns = round(self._parameters.stamp_jump_s * SECOND_NS)
            self._clock_offset_ns = 0 if self._clock_offset_ns else -jump_ns
        message = copy.copy(message)
        message.clock = ns_to_stamp(max(0, stamp_to_ns(message.clock) + self._clock_offset_ns))
        return message

    def _is_paused(self, now_ns: int) -> bool:
        every_ns = round(self._parameters.pause_every_s * SECOND_NS)
        pause_ns = round(self._parameters.pause_s * SECOND_NS)
        return every_ns > 0 and now_ns % every_ns < pause_ns

    def _happens(self, fault: str, share: float) -> bool:
        if share <= 0 or self._random.random() >= share:
            return False
        self.counts[fault] += 1
        return True


def with_bad_encoding(message: Image | CompressedImage | JointState) -> Any:
    """A copy that says something unknown about itself."""
    message = copy.copy(message)
    if isinstance(message, Image):
        message.encoding = UNKNOWN
    elif isinstance(message, CompressedImage):
        message.format, message.data = f"{UNKNOWN}; compressedDepth", b"\x00" * 16
    else:
        message.name = [f"not_{name}" for name in message.name]
    return message


def with_bad_size(message: Image | CompressedImage | JointState) -> Any:
    """A copy that is cut in the middle."""
    message = copy.copy(message)
    if isinstance(message, JointState):
        message.position = list(message.position)[: len(message.position) // 2]
    else:
        message.data = bytes(message.data[: len(message.data) // 2])
    return message
