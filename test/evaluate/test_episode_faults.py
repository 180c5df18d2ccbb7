"""Every kind of unusable bag is refused by name; none crashes the reader."""

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

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import read_episode


def test_a_folder_that_is_no_bag_is_refused_by_name(tmp_path):
    with pytest.raises(CalibrationError, match=r"nowhere is not a rosbag2 folder"):
        read_episode(tmp_path / "nowhere", LAYOUT)


def test_a_missing_topic_is_named_with_the_topics_that_are_there(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    layout = replace(LAYOUT, state="/arm/state")
    with pytest.raises(CalibrationError, match=r"bag has no topic /arm/state; it has .*/robot"):
        read_episode(path, layout)


def test_a_bag_without_messages_is_refused(tmp_path):
    path = RawBag(tmp_path / "bag").close()
    with pytest.raises(CalibrationError, match="none at all"):
        read_episode(path, LAYOUT)


def test_a_topic_without_messages_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    bag.declare("/robot/state", "sensor_msgs/msg/JointState")
    with pytest.raises(CalibrationError, match=r"bag, topic /robot/state: .*no messages"):
        read_episode(bag.close(), LAYOUT)


def test_a_bag_with_fewer_messages_than_it_promises_is_refused(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    without_messages = usable_bag(tmp_path / "other" / "bag", length=0).close()
    (path / "bag.mcap").write_bytes((without_messages / "bag.mcap").read_bytes())
    with pytest.raises(CalibrationError, match=rf"{path} is damaged.* 1 of 13 messages"):
        read_episode(path, LAYOUT)


def test_an_undecodable_image_is_refused_with_bag_and_topic(tmp_path):
    path = usable_bag(tmp_path / "bag", damaged_wrist_image=2).close()
    with pytest.raises(CalibrationError, match=rf"{path}, topic {WRIST}: .*cannot be decoded"):
        list(read_episode(path, LAYOUT).observations)


def test_a_topic_of_another_type_is_refused(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    for change, culprit in (
        ({"state": "/instruction", "instruction_text": "go"}, "/instruction: holds std_msgs"),
        (
            {"images": {"primary": "/robot/state"}, "state": "/robot/action", "action": None},
            "/robot/state: holds",
        ),
        ({"instruction": "/robot/action", "action": None}, "/robot/action: holds sensor_msgs"),
    ):
        with pytest.raises(CalibrationError, match=rf"{culprit}.*has to hold"):
            read_episode(path, replace(LAYOUT, **change))


def test_an_unknown_pixel_encoding_is_refused_by_name(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.raw("/camera", stamp_ns, "16UC1", np.zeros((2, 6), np.uint8), width=3)
        bag.joints("/robot/state", stamp_ns, [0, 0])
    episode = read_episode(bag.close(), replace(LAYOUT, images={"primary": "/camera"}))
    with pytest.raises(CalibrationError, match=r"topic /camera: .*'16UC1'"):
        episode.observations[0]


def test_a_raw_image_with_too_few_bytes_is_refused(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.raw("/camera", stamp_ns, "rgb8", np.zeros((2, 6), np.uint8), width=3)
        bag.joints("/robot/state", stamp_ns, [0, 0])
    episode = read_episode(bag.close(), replace(LAYOUT, images={"primary": "/camera"}))
    with pytest.raises(CalibrationError, match="step 6 is too small for 3 pixels"):
        episode.observations[0]


def test_a_name_that_is_missing_is_told_with_those_that_are_there(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    for index in range(3):
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [0, 0], ("x", "z"))
    episode = read_episode(bag.close(), LAYOUT)
    with pytest.raises(CalibrationError, match=r"bag, topic /robot/state: .*lacks y; it has x, z"):
        episode.observations[0]


def test_an_action_name_that_is_missing_is_told(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    with pytest.raises(CalibrationError, match=r"bag, topic /robot/action: .*lacks dy; it has dx"):
        read_episode(path, replace(LAYOUT, action_names=("dx", "dy")))


def test_joints_without_names_are_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    for index in range(3):
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [0, 0], ())
    episode = read_episode(bag.close(), LAYOUT)
    with pytest.raises(CalibrationError, match=r"/robot/state: .*0 names but 2 positions"):
        episode.observations[0]


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    for index in range(3):
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [1.0, float("nan")])
    episode = read_episode(bag.close(), LAYOUT)
    with pytest.raises(CalibrationError, match=r"/robot/state: .*not finite"):
        episode.observations[2]


def test_actions_that_are_asked_for_must_be_there(tmp_path):
    path = usable_bag(tmp_path / "bag", leave_out="action").close()
    with pytest.raises(CalibrationError, match="no topic /robot/action"):
        read_episode(path, replace(LAYOUT, require_actions=True))


def test_stamps_that_were_never_set_are_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    bag.recording_delay_ns = START_NS * 100
    for index in range(3):
        bag.joints("/robot/state", index, [1.0, 0.0])
    with pytest.raises(CalibrationError, match=r"/robot/state: the stamps lie 100 s before"):
        read_episode(bag.close(), LAYOUT)


def test_a_source_that_had_stopped_ends_the_observations_and_is_counted(tmp_path):
    bag = usable_bag(tmp_path / "bag", length=20, leave_out="state")
    bag.joints("/robot/state", START_NS, [1.0, 0.0])
    episode = read_episode(bag.close(), LAYOUT)
    assert len(episode.observations) == 2
    assert episode.drops == {"out_of_step_state": 18}


def test_a_state_that_comes_too_late_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    bag.joints("/robot/state", START_NS + 9 * PERIOD_NS, [1.0, 0.0])
    with pytest.raises(CalibrationError, match=r"no observation \(missing_state 3\)"):
        read_episode(bag.close(), LAYOUT)


def test_late_and_repeated_samples_are_counted_as_the_node_counts_them(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    bag.recording_delay_ns = PERIOD_NS
    bag.jpeg(PRIMARY, START_NS + PERIOD_NS, plain_jpeg(0))
    episode = read_episode(bag.close(), LAYOUT)
    assert len(episode.observations) == 3
    assert episode.drops == {"out_of_order": 1}


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_bag_is_refused_by_name(tmp_path, plugin, kept):
    path = usable_bag(tmp_path / "bag", length=20, plugin=plugin).close()
    (file,) = [each for each in path.iterdir() if each.name != "metadata.yaml"]
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CalibrationError, match=str(path)):
        list(read_episode(path, LAYOUT).observations)


@pytest.mark.parametrize("text", ["", "nonsense", "a: [", "rosbag2_bagfile_information: {}"])
def test_damaged_metadata_is_refused_by_name(tmp_path, text):
    path = usable_bag(tmp_path / "bag").close()
    (path / "metadata.yaml").write_text(text)
    with pytest.raises(CalibrationError, match=str(path)):
        read_episode(path, LAYOUT)


@pytest.mark.parametrize("seed", range(20))
def test_a_bag_with_flipped_bytes_is_read_or_refused_but_never_crashes(tmp_path, seed):
    path = usable_bag(tmp_path / "bag", length=5).close()
    rng = np.random.default_rng(seed)
    data = np.frombuffer((path / "bag.mcap").read_bytes(), np.uint8).copy()
    data[rng.integers(0, len(data), 8)] ^= rng.integers(1, 256, 8, np.uint8)
    (path / "bag.mcap").write_bytes(data.tobytes())
    try:
        list(read_episode(path, LAYOUT).observations)
    except CalibrationError as error:
        assert str(path) in str(error)
