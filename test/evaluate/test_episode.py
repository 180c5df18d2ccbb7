"""Bags: round trips, and the node's own synchronisation of what is in them."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from raw_bag import (
    LAYOUT,
    PERIOD_NS,
    PRIMARY,
    START_NS,
    WRIST,
    RawBag,
    plain_jpeg,
    usable_bag,
)
from rosbags.rosbag2 import StoragePlugin

from qvla_ros.errors import CalibrationError, ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.bag_writer import write_episode
from qvla_ros.evaluate.episode import Episode, Observations, RecordedActions, read_episode
from qvla_ros.image_codec import through_jpeg
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.observation import Observation
from qvla_ros.policy.frame_sync import SyncSettings

MS = 1_000_000


def make_episode(length: int = 4, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    observations = [
        Observation(
            stamp_ns=START_NS + index * PERIOD_NS,
            images={
                name: rng.integers(0, 256, (16, 24, 3), np.uint8) for name in ("primary", "wrist")
            },
            state=rng.normal(size=2).astype(np.float32),
            instruction="pick up the black bowl",
        )
        for index in range(length)
    ]
    actions = rng.normal(size=(length, 1)).astype(np.float32)
    return Episode.in_step(observations, actions, {"seed": "7"})


def test_a_written_episode_is_read_back_with_the_pixels_after_compression(tmp_path):
    episode = make_episode()
    write_episode(tmp_path / "bag", episode, LAYOUT)
    read = read_episode(tmp_path / "bag", LAYOUT)
    assert read.metadata == {"name": "bag", "seed": "7"}
    assert (read.drops, read.revoked_ns) == ({}, ())
    np.testing.assert_array_equal(read.actions.values, episode.actions.values)
    np.testing.assert_array_equal(read.actions.stamps_ns, episode.actions.stamps_ns)
    np.testing.assert_array_equal(read.ready_ns, episode.ready_ns)
    np.testing.assert_array_equal(read.paced_ns, episode.paced_ns)
    for before, after in zip(episode.observations, read.observations, strict=True):
        assert after.stamp_ns == before.stamp_ns
        assert after.instruction == before.instruction
        np.testing.assert_array_equal(after.state, before.state)
        assert list(after.images) == ["primary", "wrist"]
        for name, image in before.images.items():
            np.testing.assert_array_equal(after.images[name], through_jpeg(image))


def test_a_bag_without_actions_is_an_episode_without_them(tmp_path):
    write_episode(tmp_path / "bag", Episode.in_step(make_episode().observations), LAYOUT)
    assert read_episode(tmp_path / "bag", LAYOUT).actions is None
    assert len(read_episode(tmp_path / "bag", LAYOUT).observations) == 4


def test_the_same_episode_gives_the_same_bytes(tmp_path):
    digests = set()
    for folder in ("a", "b"):
        write_episode(tmp_path / folder / "bag", make_episode(), LAYOUT)
        data = (tmp_path / folder / "bag" / "bag.mcap").read_bytes()
        digests.add(hashlib.sha256(data).hexdigest())
    assert len(digests) == 1


def test_the_instruction_is_latched_in_the_metadata_of_the_bag(tmp_path):
    write_episode(tmp_path / "bag", make_episode(), LAYOUT)
    text = (tmp_path / "bag" / "metadata.yaml").read_text()
    assert text.count("durability: transient_local") == 1
    assert text.count("durability: volatile") == 4


def test_an_existing_bag_is_not_overwritten(tmp_path):
    write_episode(tmp_path / "bag", make_episode(), LAYOUT)
    with pytest.raises(ConfigurationError, match="exists already"):
        write_episode(tmp_path / "bag", make_episode(seed=1), LAYOUT)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    seen = make_episode(1).observations[0]
    unwritable = Observation(seen.stamp_ns, seen.images, seen.state, "half a character \ud800")
    with pytest.raises(UnicodeEncodeError):
        write_episode(tmp_path / "bag", Episode.in_step([unwritable]), LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_what_would_not_be_read_back_is_not_written(tmp_path):
    first, second = make_episode(2).observations
    changed = Observation(second.stamp_ns, second.images, second.state, "something else")
    with pytest.raises(ValueError, match="one instruction"):
        write_episode(tmp_path / "bag", Episode.in_step([first, changed]), LAYOUT)
    late = replace(
        make_episode(2),
        actions=RecordedActions(np.array([1, 2]), np.zeros((2, 1), np.float32)),
    )
    with pytest.raises(ValueError, match="an action for each"):
        write_episode(tmp_path / "bag", late, LAYOUT)


def test_a_sqlite_bag_is_read_like_an_mcap_bag(tmp_path):
    path = usable_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3).close()
    episode = read_episode(path, LAYOUT)
    np.testing.assert_array_equal(episode.actions.values[:, 0], [0, 1, 2])
    assert [seen.instruction for seen in episode.observations] == ["go"] * 3


def test_state_and_actions_are_picked_by_name_whatever_their_order_and_company(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state action")
    for index in range(3):
        stamp_ns = START_NS + index * PERIOD_NS
        names = ("finger", "y", "x") if index else ("x", "y")  # the order may even change
        bag.joints("/robot/state", stamp_ns, [9, 2, index] if index else [index, 2], names)
        bag.joints("/robot/action", stamp_ns, [9, 10 * index], ("other", "dx"))
    episode = read_episode(bag.close(), LAYOUT)
    assert [seen.state.tolist() for seen in episode.observations] == [[0, 2], [1, 2], [2, 2]]
    assert episode.actions.values.tolist() == [[0], [10], [20]]


def test_the_topics_of_a_robot_are_those_of_the_node():
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["aloha"])
    assert list(layout.images) == ["primary", "left_wrist", "right_wrist"]
    assert layout.images["left_wrist"] == "/camera/left_wrist/image_raw/compressed"
    assert layout.state_names == ROBOT_CONSTANTS["aloha"].state_names


def test_each_image_gets_the_newest_earlier_sample_of_slower_topics(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS - 5, "first")
    bag.say(START_NS + 2 * PERIOD_NS, "second")
    for index in range(4):
        bag.jpeg(PRIMARY, START_NS + index * PERIOD_NS, plain_jpeg(0))
        bag.joints("/robot/state", START_NS + index * PERIOD_NS - 1, [index, 0])
    bag.jpeg(WRIST, START_NS - 1, plain_jpeg(40))
    bag.jpeg(WRIST, START_NS + PERIOD_NS + 1, plain_jpeg(80))
    settings = SyncSettings(max_skew_ns=2 * PERIOD_NS)
    episode = read_episode(bag.close(), LAYOUT, settings)
    wrist = [int(seen.images["wrist"][0, 0, 0]) for seen in episode.observations]
    # The new instruction asks again about the newest image that is complete when it comes.
    assert wrist == [40, 40, 40, 80, 80]
    assert [int(seen.state[0]) for seen in episode.observations] == [0, 1, 1, 2, 3]
    instructions = [seen.instruction for seen in episode.observations]
    assert instructions == ["first", "first", "second", "second", "second"]
    assert episode.revoked_ns == (START_NS + 2 * PERIOD_NS,)


def test_an_observation_is_dated_by_its_oldest_input_and_ready_when_the_node_had_it(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS - 5 * MS, "go")
    for index in range(3):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.joints("/robot/state", stamp_ns - 4 * MS, [index, 0])
        bag.recording_delay_ns = 3 * MS
        bag.jpeg(PRIMARY, stamp_ns, plain_jpeg(0))
        bag.recording_delay_ns = 0
    layout = replace(LAYOUT, images={"primary": PRIMARY})
    episode = read_episode(bag.close(), layout)
    stamps = [START_NS + index * PERIOD_NS for index in range(3)]
    assert [seen.stamp_ns for seen in episode.observations] == [s - 4 * MS for s in stamps]
    assert episode.paced_ns.tolist() == stamps
    # No later state came, so each image waited for 20 ms; the last one too.
    assert episode.ready_ns.tolist() == [stamp + 20 * MS for stamp in stamps]


def test_images_before_the_first_state_are_left_out_and_counted(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(4):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.jpeg(PRIMARY, stamp_ns, plain_jpeg(0))
        bag.jpeg(WRIST, stamp_ns, plain_jpeg(0))
        if index > 1:
            bag.joints("/robot/state", stamp_ns, [index, 0])
    episode = read_episode(bag.close(), LAYOUT)
    assert episode.drops == {"missing_state": 2}
    assert [seen.state[0] for seen in episode.observations] == [2, 3]


def test_cameras_out_of_step_give_no_observation_by_the_rules_of_the_node(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(8):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.joints("/robot/state", stamp_ns, [0, 0])
        bag.jpeg(PRIMARY, stamp_ns, plain_jpeg(0))
        if index % 4 == 0:
            bag.jpeg(WRIST, stamp_ns, plain_jpeg(0))
    path = bag.close()
    episode = read_episode(path, LAYOUT)
    assert len(episode.observations) == 4
    assert episode.drops == {"out_of_step_camera_wrist": 4}
    patient = read_episode(path, LAYOUT, SyncSettings(max_skew_ns=3 * PERIOD_NS))
    assert (len(patient.observations), patient.drops) == (8, {})


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_raw_images_with_padded_rows_become_rgb(tmp_path, encoding):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    stored = pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    rows = np.concatenate([stored.reshape(2, 9), np.full((2, 5), 255, np.uint8)], axis=1)
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        bag.raw("/camera", START_NS + index * PERIOD_NS, encoding, rows, width=3)
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [0, 0])
    layout = replace(LAYOUT, images={"primary": "/camera"})
    episode = read_episode(bag.close(), layout)
    np.testing.assert_array_equal(episode.observations[0].images["primary"], pixels)


def test_the_state_may_be_a_pose_and_joints(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    for index in range(3):
        turn = (0.5**0.5, 0.5**0.5) if index < 2 else (0.0, 0.0)  # the last one is no rotation
        bag.pose("/robot/pose", START_NS + index * PERIOD_NS, [index, 0, 7], (0, 0, *turn))
    path = bag.close()
    layout = replace(LAYOUT, state_names=("pose.x", "y", "pose.rz"))
    episode = read_episode(path, layout)
    states = [seen.state.tolist() for seen in episode.observations]
    assert states[:2] == [pytest.approx([index, 0.5, np.pi / 2]) for index in range(2)]
    assert episode.drops["bad_message"] == 1
    alone = read_episode(path, replace(LAYOUT, state_names=("pose.z", "pose.w")))
    with pytest.raises(CalibrationError, match=r"topic /robot/pose: .*lacks pose\.w; it has pose"):
        alone.observations[0]


def test_a_policy_without_proprioception_needs_no_state_topic(tmp_path):
    path = usable_bag(tmp_path / "bag", 3, leave_out="state").close()
    layout = replace(LAYOUT, images={"primary": PRIMARY}, state_names=())
    assert list(layout.sources) == [PRIMARY]
    read = read_episode(path, layout)
    assert [seen.state.shape for seen in read.observations] == [(0,)] * 3
    with pytest.raises(CalibrationError, match="/robot/state"):
        read_episode(path, LAYOUT)


def test_the_instruction_may_be_told_instead_of_recorded(tmp_path):
    bag = RawBag(tmp_path / "bag")
    for index in range(2):
        bag.jpeg(PRIMARY, START_NS + index * PERIOD_NS, plain_jpeg(0))
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [0, 0])
    layout = replace(LAYOUT, images={"primary": PRIMARY}, instruction_text="go home")
    episode = read_episode(bag.close(), layout)
    assert [seen.instruction for seen in episode.observations] == ["go home"] * 2


def test_a_bag_of_another_clock_is_read_by_its_stamps(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.recording_delay_ns = 1_000_000_000 * 10**9
    for index in range(3):
        if index == 1:
            bag.say(START_NS, "go")
        bag.jpeg(PRIMARY, START_NS + index * PERIOD_NS, plain_jpeg(0))
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [index, 0])
    layout = replace(LAYOUT, images={"primary": PRIMARY}, arrival_from_stamps=True)
    episode = read_episode(bag.close(), layout)
    assert episode.ready_ns.tolist() == episode.paced_ns.tolist()
    assert [seen.instruction for seen in episode.observations] == ["go"] * 3


def test_the_recorded_action_of_an_instant_is_the_nearest_one_or_none():
    actions = RecordedActions(np.array([100, 200, 300]), np.array([[1], [2], [3]], np.float32))
    found = actions.at(np.array([[100, 149], [151, 351], [49, 250]]), within_ns=50)
    np.testing.assert_array_equal(found[..., 0], [[1, 1], [2, np.nan], [np.nan, 3]])
    nothing = RecordedActions(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
    assert np.isnan(nothing.at(np.array([1, 2]), 50)).all()


def test_observations_are_decoded_when_they_are_asked_for(tmp_path):
    asked: list[int] = []
    seen = make_episode(3).observations

    def ask(index: int) -> Observation:
        asked.append(index)
        return seen[index]

    some = Observations([lambda index=index: ask(index) for index in range(3)])
    both = Observations.of_all([some, some[1:]])
    assert (len(both), asked) == (5, [])
    assert both[3] is seen[1]
    assert asked == [1]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="differ in number"):
        Episode(make_episode(2).observations, np.zeros(2), np.zeros(1))
    with pytest.raises(ValueError, match="float32"):
        RecordedActions(np.zeros(2, np.int64), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="1 actions, but 2 stamps"):
        RecordedActions(np.zeros(2, np.int64), np.zeros((1, 2), np.float32))
    with pytest.raises(ConfigurationError, match="/robot/state cannot stand for 2 inputs"):
        replace(LAYOUT, action="/robot/state")
