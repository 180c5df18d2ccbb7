"""Every kind of unusable bag is refused by name; none crashes the reader."""

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from raw_bag import PERIOD_NS, START_NS, WRIST, RawBag, usable_bag
from rosbags.rosbag2 import StoragePlugin

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import EpisodeTopics, read_episode
from qvla_ros.evaluate.jpeg import decode_jpeg, encode_jpeg


def test_a_folder_that_is_no_bag_is_refused_by_name(tmp_path):
    with pytest.raises(CalibrationError, match=r"nowhere is not a rosbag2 folder"):
        read_episode(tmp_path / "nowhere")


def test_a_missing_topic_is_named_with_the_topics_that_are_there(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    topics = EpisodeTopics(state="/arm/state")
    with pytest.raises(CalibrationError, match=r"bag has no topic /arm/state; it has .*/robot"):
        read_episode(path, topics)


def test_a_bag_without_messages_is_refused(tmp_path):
    path = RawBag(tmp_path / "bag").close()
    with pytest.raises(CalibrationError, match="none at all"):
        read_episode(path)


def test_a_topic_without_messages_is_refused(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    without_messages = usable_bag(tmp_path / "other" / "bag", length=0).close()
    (path / "bag.mcap").write_bytes((without_messages / "bag.mcap").read_bytes())
    with pytest.raises(CalibrationError, match=r"bag, topic /camera/primary.*bag is empty"):
        read_episode(path)


def test_an_undecodable_image_is_refused_with_bag_and_topic(tmp_path):
    path = usable_bag(tmp_path / "bag", damaged_wrist_image=2).close()
    with pytest.raises(CalibrationError, match=rf"{path}, topic {WRIST}: image 2 cannot be"):
        read_episode(path)


def test_a_topic_of_another_type_is_refused(tmp_path):
    path = usable_bag(tmp_path / "bag").close()
    with pytest.raises(CalibrationError, match=r"/instruction: holds std_msgs/msg/String"):
        read_episode(path, EpisodeTopics(state="/instruction"))
    with pytest.raises(CalibrationError, match=r"/robot/state: holds .*a camera has to"):
        read_episode(path, EpisodeTopics(images={"primary": "/robot/state"}))
    with pytest.raises(CalibrationError, match=r"/robot/state: holds .*instruction is a"):
        read_episode(path, EpisodeTopics(instruction="/robot/state"))


def test_an_unknown_pixel_encoding_is_refused_by_name(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.raw("/camera", stamp_ns, "16UC1", np.zeros((2, 6), np.uint8), width=3)
        bag.joints("/robot/state", stamp_ns, [0])
    topics = EpisodeTopics(images={"primary": "/camera"}, action=None)
    with pytest.raises(CalibrationError, match=r"topic /camera: image 0 .*'16UC1'"):
        read_episode(bag.close(), topics)


def test_a_raw_image_with_too_few_bytes_is_refused(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.raw("/camera", stamp_ns, "rgb8", np.zeros((2, 6), np.uint8), width=3)
        bag.joints("/robot/state", stamp_ns, [0])
    topics = EpisodeTopics(images={"primary": "/camera"}, action=None)
    with pytest.raises(CalibrationError, match="12 bytes do not make 2 rows"):
        read_episode(bag.close(), topics)


def test_unequal_numbers_of_actions_and_images_are_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    bag.joints("/robot/action", START_NS + 3 * PERIOD_NS, [3])
    with pytest.raises(CalibrationError, match=r"/robot/action: unequal lengths: 4 .* 3 images"):
        read_episode(bag.close())


def test_an_action_that_belongs_to_another_image_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="action")
    for index in range(3):
        bag.joints("/robot/action", START_NS + (index + 1) * PERIOD_NS, [index])
    with pytest.raises(CalibrationError, match=r"/robot/action: action 0 .* cannot be its answer"):
        read_episode(bag.close())


def test_a_state_that_changes_its_size_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    bag.joints("/robot/state", START_NS + 3 * PERIOD_NS, [1.0])
    with pytest.raises(CalibrationError, match=r"/robot/state: unequal lengths at message 3"):
        read_episode(bag.close())


def test_joints_that_change_their_names_are_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    bag.joints("/robot/state", START_NS + 3 * PERIOD_NS, [1.0, 2.0], names=("a", "b"))
    with pytest.raises(CalibrationError, match=r"/robot/state: the names change"):
        read_episode(bag.close())


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag")
    bag.joints("/robot/state", START_NS + 3 * PERIOD_NS, [1.0, float("nan")])
    with pytest.raises(CalibrationError, match=r"/robot/state: message 3 .*not finite"):
        read_episode(bag.close())


def test_headers_without_rising_stamps_are_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    for _ in range(3):
        bag.joints("/robot/state", 0, [1.0])
    with pytest.raises(CalibrationError, match=r"/robot/state: two messages have the stamp 0"):
        read_episode(bag.close())


def test_a_source_that_had_stopped_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", length=20, leave_out="state")
    bag.joints("/robot/state", START_NS, [1.0])
    path = bag.close()
    with pytest.raises(CalibrationError, match=r"/robot/state: no message for 550 ms"):
        read_episode(path)


def test_a_state_that_comes_too_late_is_refused(tmp_path):
    bag = usable_bag(tmp_path / "bag", leave_out="state")
    bag.joints("/robot/state", START_NS + 9 * PERIOD_NS, [1.0])
    with pytest.raises(CalibrationError, match=r"/robot/state: its first message is later"):
        read_episode(bag.close())


def test_a_single_image_is_no_episode(tmp_path):
    path = usable_bag(tmp_path / "bag", length=1).close()
    with pytest.raises(CalibrationError, match="single image"):
        read_episode(path)


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_bag_is_refused_by_name(tmp_path, plugin, kept):
    path = usable_bag(tmp_path / "bag", length=20, plugin=plugin).close()
    (file,) = [each for each in path.iterdir() if each.name != "metadata.yaml"]
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CalibrationError, match=str(path)):
        read_episode(path)


@pytest.mark.parametrize("text", ["", "nonsense", "a: [", "rosbag2_bagfile_information: {}"])
def test_damaged_metadata_is_refused_by_name(tmp_path, text):
    path = usable_bag(tmp_path / "bag").close()
    (path / "metadata.yaml").write_text(text)
    with pytest.raises(CalibrationError, match=str(path)):
        read_episode(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_bag_with_flipped_bytes_is_read_or_refused_but_never_crashes(tmp_path, seed):
    path = usable_bag(tmp_path / "bag", length=5).close()
    rng = np.random.default_rng(seed)
    data = np.frombuffer((path / "bag.mcap").read_bytes(), np.uint8).copy()
    data[rng.integers(0, len(data), 8)] ^= rng.integers(1, 256, 8, np.uint8)
    (path / "bag.mcap").write_bytes(data.tobytes())
    try:
        read_episode(path)
    except CalibrationError as error:
        assert str(path) in str(error)


def test_an_image_that_is_no_jpeg_is_refused():
    with pytest.raises(CalibrationError, match="0 bytes are neither"):
        decode_jpeg(b"")


def test_a_truncated_jpeg_is_refused_instead_of_filled_with_grey():
    whole = encode_jpeg(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    assert decode_jpeg(whole + b"\0\0").shape == (32, 32, 3)
    with pytest.raises(CalibrationError, match="truncated"):
        decode_jpeg(whole[: len(whole) // 2])
