"""Chunks of a live node against the replay of their inputs, with bags written here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from fake_policy import FakePolicy
from raw_bag import LAYOUT, PERIOD_NS, START_NS, RawBag, usable_bag
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.evaluate.parity import CHUNK_TYPE, Parity, Planner, check_parity
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.chunk_strategy import Blend, Ensemble, LatestOnly
from qvla_ros.policy.schedule import SchedulerSettings

TOPIC = "/policy/action_chunk"
LATENCY_NS = 30_000_000
ALL_COLUMNS = np.ones(3, bool)
DEFINITION = (Path(__file__).parents[2] / "msg" / "ActionChunk.msg").read_text()


@dataclass
class Recording:
    """The inputs of six steps, and the chunks that a node would have published."""

    bag: RawBag

    def __post_init__(self) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.store.register(get_types_from_msg(DEFINITION, CHUNK_TYPE))
        self.bag.store = self.store
        self.seq = 0

    def publish(
        self, stamp_ns: int, actions: np.ndarray, instruction: str = "go", episode_id: int = 1
    ) -> None:
        message = self.blank(CHUNK_TYPE)
        message.header = self.bag.header(stamp_ns)
        message.accepted_stamp = self.bag.header(stamp_ns + LATENCY_NS).stamp
        message.instruction, message.episode_id = instruction, episode_id
        message.seq, self.seq = self.seq, self.seq + 1
        message.horizon, message.dim = actions.shape
        message.data = actions.ravel()
        self.bag.put(TOPIC, stamp_ns + LATENCY_NS, message)

    def blank(self, kind: str) -> object:
        """A message of zeros."""
        values = {
            "float32": 0.0, "uint8": 0, "bool": False, "uint16": 0, "uint32": 0, "int32": 0,
            "string": "", "float64": 0.0, "int8": 0, "uint64": 0, "int64": 0,
        }  # fmt: skip
        fields = {}
        for name, (node, detail) in self.store.fielddefs[kind][1]:
            if node.name == "BASE":
                fields[name] = values[detail[0]]
            elif node.name == "NAME":
                fields[name] = self.blank(detail)
            else:
                fields[name] = [] if detail[0][1][0] == "string" else np.zeros(0, np.float32)
        return self.store.types[kind](**fields)


@pytest.fixture(params=list(StoragePlugin))
def recording(request, tmp_path) -> Iterator[Recording]:
    """Without chunks yet."""
    yield Recording(usable_bag(tmp_path / "bag", 6, request.param))


def answers(path: Path) -> list[np.ndarray]:
    episode = read_episode(path, LAYOUT)
    return [FakePolicy().infer(seen).chunk.actions for seen in episode.observations]


@pytest.fixture
def said(tmp_path) -> list[np.ndarray]:
    """What the policy says to each step of the recording."""
    return answers(usable_bag(tmp_path / "other", 6).close())


def test_chunks_of_the_same_inputs_are_the_same(recording, said):
    for step in (0, 2, 5):
        recording.publish(START_NS + step * PERIOD_NS, said[step])
    parity = check_parity(FakePolicy(), recording.bag.close(), LAYOUT, TOPIC)
    assert parity == Parity(
        chunks=3, unmatched=0, unknown=0, mismatches=0, greatest_difference=0.0
    )


def test_a_chunk_that_says_something_else_is_a_mismatch(recording, said):
    recording.publish(START_NS, said[0])
    recording.publish(START_NS + PERIOD_NS, said[1] + np.float32(0.5))
    recording.publish(START_NS + 2 * PERIOD_NS, said[2][:4])
    path = recording.bag.close()
    parity = check_parity(FakePolicy(), path, LAYOUT, TOPIC)
    assert (parity.chunks, parity.unmatched, parity.mismatches) == (3, 0, 2)
    assert parity.greatest_difference == float("inf")


def test_a_small_difference_may_be_tolerated(recording, said):
    recording.publish(START_NS, said[0] + np.float32(0.5))
    path = recording.bag.close()
    assert check_parity(FakePolicy(), path, LAYOUT, TOPIC, tolerance=0.6).mismatches == 0
    assert check_parity(FakePolicy(), path, LAYOUT, TOPIC, tolerance=0.4).mismatches == 1


def test_a_chunk_that_answers_nothing_in_the_bag_is_unmatched(recording, said):
    recording.publish(START_NS + 1, said[0])
    recording.publish(START_NS + PERIOD_NS, said[1], "another task")
    recording.publish(START_NS + 2 * PERIOD_NS, said[2])
    parity = check_parity(FakePolicy(), recording.bag.close(), LAYOUT, TOPIC)
    assert (parity.chunks, parity.unmatched, parity.mismatches) == (3, 2, 0)


def test_holds_are_no_chunks_and_a_bag_of_holds_alone_is_refused(recording):
    recording.publish(START_NS, np.zeros((0, 3), np.float32))
    with pytest.raises(CalibrationError, match=f"topic {TOPIC}: holds no chunk"):
        check_parity(FakePolicy(), recording.bag.close(), LAYOUT, TOPIC)


def said_through(planner: Planner, path: Path) -> list[np.ndarray]:
    """What a node of this kind publishes; the task of the last two steps is a new episode."""
    scheduler = ChunkScheduler(planner.settings, planner.strategy)
    published = []
    for step, seen in enumerate(read_episode(path, LAYOUT).observations):
        if step == 4:
            scheduler.flush("instruction_changed")
        chunk = FakePolicy().infer(seen).chunk
        acceptance = scheduler.accept(chunk, chunk.observed_at_ns + LATENCY_NS)
        assert acceptance.planned is not None
        published.append(acceptance.planned.actions)
    return published


@pytest.mark.parametrize(
    "strategy",
    [Blend(ALL_COLUMNS, 120_000_000), Ensemble(ALL_COLUMNS, 8, 0.5)],
    ids=["blend", "ensemble"],
)
def test_chunks_that_were_made_of_several_are_made_again(recording, tmp_path, strategy):
    planner = Planner.of(FakePolicy(), strategy)
    published = said_through(planner, usable_bag(tmp_path / "other", 6).close())
    for step, actions in enumerate(published):
        stamp_ns = START_NS + step * PERIOD_NS
        recording.seq = 0 if step == 4 else recording.seq  # stopped and started
        recording.publish(stamp_ns, actions, episode_id=1 if step < 4 else 2)
    path = recording.bag.close()
    parity = check_parity(FakePolicy(), path, LAYOUT, TOPIC, planner=planner)
    assert parity == Parity(
        chunks=6, unmatched=0, unknown=0, mismatches=0, greatest_difference=0.0
    )
    assert check_parity(FakePolicy(), path, LAYOUT, TOPIC).mismatches == 4, "they were mixed"


def test_what_was_mixed_with_a_chunk_that_is_not_in_the_bag_is_not_judged(recording, tmp_path):
    strategy = Ensemble(ALL_COLUMNS, 8, 0.5)
    planner = Planner.of(FakePolicy(), strategy)
    published = said_through(planner, usable_bag(tmp_path / "other", 6).close())
    for step in (0, 1, 3):
        recording.seq = step
        recording.publish(START_NS + step * PERIOD_NS, published[step])
    path = recording.bag.close()
    parity = check_parity(FakePolicy(), path, LAYOUT, TOPIC, planner=planner)
    assert (parity.chunks, parity.unknown, parity.mismatches) == (3, 1, 0)
    assert check_parity(FakePolicy(), path, LAYOUT, TOPIC).unknown == 0


@pytest.mark.parametrize(
    "strategy",
    [LatestOnly(), Blend(ALL_COLUMNS, 120_000_000), Ensemble(ALL_COLUMNS, 8, 0.5)],
    ids=["latest_only", "blend", "ensemble"],
)
def test_what_was_clamped_from_the_chunk_before_is_clamped_so_again(recording, tmp_path, strategy):
    low, high, step = (np.array(one, np.float32) for one in ([-9] * 3, [300] * 3, [0.3, 300, 300]))
    limits = ActionLimits(("row", "state", "grip"), low, high, step)
    horizon_ns = 8 * FakePolicy().period_ns
    planner = Planner(
        SchedulerSettings(horizon_ns, horizon_ns, limits=limits, clamp=True), strategy
    )
    published = said_through(planner, usable_bag(tmp_path / "other", 6).close())
    for step, actions in enumerate(published[:4]):
        recording.publish(START_NS + step * PERIOD_NS, actions)
    path = recording.bag.close()
    parity = check_parity(FakePolicy(), path, LAYOUT, TOPIC, planner=planner)
    assert (parity.chunks, parity.unknown, parity.mismatches) == (4, 0, 0)
    assert check_parity(FakePolicy(), path, LAYOUT, TOPIC).mismatches == 4
