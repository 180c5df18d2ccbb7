"""The session on a clock that the test turns."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from fake_policy import FakePolicy
from sensor_msgs.msg import Image, JointState

from qvla_ros.msg import ActionChunk
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session import Session
from qvla_ros.policy.frame_sync import Sample

MS = 1_000_000
START_MS = 10_000
IMAGE = Image(encoding="rgb8", height=2, width=2, step=6, data=bytes(12))
STATE = JointState(name=["x", "y"], position=[0.5, 0.5])


@dataclass
class Bench:
    """A session, its clock in ms, and what it sent."""

    now_ms: int = START_MS
    policy: FakePolicy = field(default_factory=FakePolicy)
    sent: list[ActionChunk] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(
            self.policy,
            NodeParameters(),
            lambda: self.now_ms * MS,
            self.sent.append,
            self.warnings.append,
        )

    def sense(self, at_ms: int) -> None:
        """All sensors see the same instant, and their messages come at once."""
        self.now_ms = at_ms
        for source, message in (
            ("camera_primary", IMAGE),
            ("camera_wrist", IMAGE),
            ("state", STATE),
        ):
            self.session.add(source, Sample(at_ms * MS, message), at_ms * MS)

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for what the worker's thread is to do."""
        end = time.monotonic() + 20
        while not reached() and time.monotonic() < end:
            time.sleep(0.001)
        return reached()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.policy.gate.set()
    bench.session.stop("end of test")


def test_an_answer_to_the_old_instruction_is_not_sent_after_the_hold(bench: Bench) -> None:
    bench.session.instruct("first", 0)
    bench.session.start()
    bench.policy.gate.clear()
    bench.sense(START_MS)
    assert bench.until(lambda: len(bench.policy.seen) == 1)
    bench.session.instruct("second", bench.now_ms * MS)
    bench.policy.gate.set()
    assert bench.session.loop.stop()
    assert [message.hold_reason for message in bench.sent] == ["instruction_changed"]


def test_a_clock_that_jumps_back_revokes_the_chunks_and_service_goes_on(bench: Bench) -> None:
    bench.session.instruct("go", 0)
    bench.session.start()
    bench.sense(START_MS)
    assert bench.until(lambda: len(bench.sent) == 1)
    bench.now_ms = 100
    bench.sense(100)
    assert bench.sent[1].hold_reason == "clock_jumped_back"
    bench.sense(150)
    assert bench.until(lambda: len(bench.sent) == 3)
    assert [observation.stamp_ns // MS for observation in bench.policy.seen] == [START_MS, 150]


def test_what_comes_while_not_serving_is_ignored(bench: Bench) -> None:
    bench.session.instruct("go", 0)
    bench.sense(START_MS)
    assert (bench.policy.seen, bench.sent) == ([], [])


def test_observations_between_two_requests_are_left_alone(bench: Bench) -> None:
    bench.session.instruct("go", 0)
    bench.session.start()
    for step in range(9):
        bench.sense(START_MS + 50 * step)
        assert bench.until(lambda: len(bench.sent) == 1 + step // 4)  # noqa: B023
    stamps = [observation.stamp_ns // MS - START_MS for observation in bench.policy.seen]
    assert stamps == [0, 200, 400]
