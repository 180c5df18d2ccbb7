"""Bags: round trips, and the causal assembly of observations."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra 'bag' (rosbags)")

from raw_bag import PERIOD_NS, PRIMARY, START_NS, WRIST, RawBag, plain_jpeg, usable_bag
from rosbags.rosbag2 import StoragePlugin

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.episode import Episode, EpisodeTopics, read_episode, write_episode
from qvla_ros.evaluate.jpeg import through_jpeg
from qvla_ros.observation import Observation

STATE_NAMES = ("x", "y", "z")


def make_episode(length: int = 4, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    observations = [
        Observation(
            stamp_ns=START_NS + index * PERIOD_NS,
            images={
                name: rng.integers(0, 256, (16, 24, 3), np.uint8) for name in ("primary", "wrist")
            },
            state=rng.normal(size=3).astype(np.float32),
            instruction="pick up the black bowl",
        )
        for index in range(length)
    ]
    actions = rng.normal(size=(length, 2)).astype(np.float32)
    return Episode(observations, actions, PERIOD_NS, {"seed": "7"}, STATE_NAMES, ("dx", "dy"))


def test_a_written_episode_is_read_back_with_the_pixels_after_compression(tmp_path):
    episode = make_episode()
    write_episode(tmp_path / "bag", episode)
    read = read_episode(tmp_path / "bag")
    assert read.period_ns == PERIOD_NS
    assert read.state_names == STATE_NAMES
    assert read.action_names == ("dx", "dy")
    assert read.metadata == {"name": "bag", "seed": "7"}
    np.testing.assert_array_equal(read.actions, episode.actions)
    for before, after in zip(episode.observations, read.observations, strict=True):
        assert after.stamp_ns == before.stamp_ns
        assert after.instruction == before.instruction
        np.testing.assert_array_equal(after.state, before.state)
        assert list(after.images) == ["primary", "wrist"]
        for name, image in before.images.items():
            np.testing.assert_array_equal(after.images[name], through_jpeg(image))


def test_an_episode_without_actions_is_written_and_read_without_them(tmp_path):
    episode = make_episode()
    write_episode(tmp_path / "bag", Episode(episode.observations, None, PERIOD_NS, {}))
    assert read_episode(tmp_path / "bag", EpisodeTopics(action=None)).actions is None


def test_the_same_episode_gives_the_same_bytes(tmp_path):
    digests = set()
    for folder in ("a", "b"):
        write_episode(tmp_path / folder / "bag", make_episode())
        data = (tmp_path / folder / "bag" / "bag.mcap").read_bytes()
        digests.add(hashlib.sha256(data).hexdigest())
    assert len(digests) == 1


def test_the_instruction_is_latched_in_the_metadata_of_the_bag(tmp_path):
    write_episode(tmp_path / "bag", make_episode())
    text = (tmp_path / "bag" / "metadata.yaml").read_text()
    assert text.count("durability: transient_local") == 1
    assert text.count("durability: volatile") == 4


def test_an_existing_bag_is_not_overwritten(tmp_path):
    write_episode(tmp_path / "bag", make_episode())
    with pytest.raises(ConfigurationError, match="exists already"):
        write_episode(tmp_path / "bag", make_episode(seed=1))


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    seen = make_episode(1).observations[0]
    unwritable = Observation(seen.stamp_ns, seen.images, seen.state, "half a character \ud800")
    with pytest.raises(UnicodeEncodeError):
        write_episode(tmp_path / "bag", Episode([unwritable], None, PERIOD_NS, {}))
    assert list(tmp_path.iterdir()) == []


def test_a_changing_instruction_is_not_written(tmp_path):
    first, second = make_episode(2).observations
    changed = Observation(second.stamp_ns, second.images, second.state, "something else")
    with pytest.raises(ValueError, match="instruction changes"):
        write_episode(tmp_path / "bag", Episode([first, changed], None, PERIOD_NS, {}))


def test_a_sqlite_bag_is_read_like_an_mcap_bag(tmp_path):
    path = usable_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3).close()
    episode = read_episode(path)
    np.testing.assert_array_equal(episode.actions[:, 0], [0, 1, 2])
    assert [seen.instruction for seen in episode.observations] == ["go"] * 3


def test_each_image_gets_the_newest_earlier_sample_of_slower_topics(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS - 5, "first")
    bag.say(START_NS + 2 * PERIOD_NS, "second")
    for index in range(4):
        bag.jpeg(PRIMARY, START_NS + index * PERIOD_NS, plain_jpeg(0))
        bag.joints("/robot/state", START_NS + index * PERIOD_NS - 1, [index])
    bag.jpeg(WRIST, START_NS - 1, plain_jpeg(40))
    bag.jpeg(WRIST, START_NS + PERIOD_NS + 1, plain_jpeg(80))
    episode = read_episode(bag.close(), EpisodeTopics(action=None))
    assert [int(seen.images["wrist"][0, 0, 0]) for seen in episode.observations] == [
        40,
        40,
        80,
        80,
    ]
    assert [int(seen.state[0]) for seen in episode.observations] == [0, 1, 2, 3]
    instructions = [seen.instruction for seen in episode.observations]
    assert instructions == ["first", "first", "second", "second"]


def test_images_before_the_first_state_are_left_out_and_counted(tmp_path):
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(4):
        stamp_ns = START_NS + index * PERIOD_NS
        bag.jpeg(PRIMARY, stamp_ns, plain_jpeg(0))
        bag.jpeg(WRIST, stamp_ns, plain_jpeg(0))
        bag.joints("/robot/action", stamp_ns, [index])
        if index > 1:
            bag.joints("/robot/state", stamp_ns, [index])
    episode = read_episode(bag.close())
    assert episode.metadata["incomplete_images"] == "2"
    np.testing.assert_array_equal(episode.actions[:, 0], [2, 3])
    assert len(episode.observations) == 2


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_raw_images_with_padded_rows_become_rgb(tmp_path, encoding):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    stored = pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    rows = np.concatenate([stored.reshape(2, 9), np.full((2, 5), 255, np.uint8)], axis=1)
    bag = RawBag(tmp_path / "bag")
    bag.say(START_NS, "go")
    for index in range(2):
        bag.raw("/camera", START_NS + index * PERIOD_NS, encoding, rows, width=3)
        bag.joints("/robot/state", START_NS + index * PERIOD_NS, [0])
    topics = EpisodeTopics(images={"primary": "/camera"}, action=None)
    episode = read_episode(bag.close(), topics)
    np.testing.assert_array_equal(episode.observations[0].images["primary"], pixels)


def test_an_episode_refuses_actions_that_do_not_fit_its_observations():
    with pytest.raises(ValueError, match="1 actions do not fit 2 observations"):
        Episode(make_episode(2).observations, np.zeros((1, 2), np.float32), PERIOD_NS, {})
    with pytest.raises(ValueError, match="float32"):
        Episode(make_episode(2).observations, np.zeros((2, 2)), PERIOD_NS, {})
