"""A recorded episode: what the robot sensed and did, from a bag and back.

The observations of a bag are assembled causally: one for each image of the first camera, with the
newest sample of every other topic that was sensed no later than that image.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qvla_ros.evaluate.bag_samples import BagSamples, read_samples
from qvla_ros.evaluate.bag_writer import new_bag
from qvla_ros.evaluate.jpeg import encode_jpeg
from qvla_ros.observation import Observation

MAX_SAMPLE_AGE_NS = 500_000_000  # an older sample means that its source had stopped


@dataclass(frozen=True, slots=True)
class EpisodeTopics:
    """Where the parts of an episode stand in a bag.

    Attributes:
        images: Camera name to topic (``sensor_msgs/CompressedImage`` or ``Image``); the first
            camera sets the pace.
        state: Proprioception, positions of a ``sensor_msgs/JointState``.
        action: Executed actions, positions of a ``sensor_msgs/JointState``, one for each image of
            the first camera; ``None`` where they were not recorded.
        instruction: ``std_msgs/String``, latched.
    """

    images: Mapping[str, str] = field(
        default_factory=lambda: {
            "primary": "/camera/primary/image_raw/compressed",
            "wrist": "/camera/wrist/image_raw/compressed",
        }
    )
    state: str = "/robot/state"
    action: str | None = "/robot/action"
    instruction: str = "/instruction"

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("an episode needs at least one camera")

    @property
    def pace(self) -> str:
        """Topic of the first camera."""
        return next(iter(self.images.values()))

    @property
    def every(self) -> tuple[str, ...]:
        """All topics."""
        action = () if self.action is None else (self.action,)
        return (*self.images.values(), self.state, *action, self.instruction)


@dataclass(frozen=True, slots=True)
class Episode:
    """One recording.

    Attributes:
        observations: In the order of time; stamps are those of the first camera and rise.
        actions: ``float32 [observations, action_dim]`` in robot units, the action that was
            executed in answer to each observation; ``None`` if unknown.
        period_ns: Median time between two observations, nanoseconds.
        metadata: Name, origin and remarks.
        state_names: Names of the values of the state, or nothing.
        action_names: Names of the values of an action, or nothing.
    """

    observations: Sequence[Observation]
    actions: np.ndarray | None
    period_ns: int
    metadata: Mapping[str, str]
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.actions is None:
            return
        if self.actions.dtype != np.float32 or self.actions.ndim != 2:
            raise ValueError(
                "actions must be float32 [observations, action_dim], "
                f"not {self.actions.dtype} {list(self.actions.shape)}"
            )
        if len(self.actions) != len(self.observations):
            raise ValueError(
                f"{len(self.actions)} actions do not fit {len(self.observations)} observations"
            )


def read_episode(path: Path, topics: EpisodeTopics | None = None) -> Episode:
    """Read a rosbag2 folder (MCAP or SQLite).

    Images of the first camera that were taken before any other topic had a sample cannot be
    completed; they are left out, and ``metadata["incomplete_images"]`` says how many.

    Args:
        path: The bag's folder.
        topics: The bag's topics; the defaults if not given.

    Raises:
        CalibrationError: The bag is missing, damaged, empty or lacks a topic, an image cannot be
            decoded, a source had stopped, or actions and images differ in number. The message
            names the bag and the topic.
        ConfigurationError: ``rosbags`` is not installed.
    """
    topics = topics or EpisodeTopics()
    bag = read_samples(Path(path), topics.every)
    pace = [sample.stamp_ns for sample in bag.topics[topics.pace]]
    if len(pace) < 2:
        raise bag.error(topics.pace, "a single image is no episode; record for longer")
    actions = None if topics.action is None else _paired_actions(bag, topics.action, pace, topics)
    first = _first_complete(bag, topics, pace)
    metadata = {"name": Path(path).name, **bag.metadata}
    if first:
        metadata["incomplete_images"] = str(first)
    return Episode(
        observations=_assemble(bag, topics, pace[first:]),
        actions=None if actions is None else actions[first:],
        period_ns=int(np.median(np.diff(pace))),
        metadata=metadata,
        state_names=bag.joint_names(topics.state),
        action_names=() if topics.action is None else bag.joint_names(topics.action),
    )


def write_episode(path: Path, episode: Episode, topics: EpisodeTopics | None = None) -> None:
    """Write a rosbag2 folder with MCAP storage, all or nothing.

    Images are compressed to JPEG here, so ``read_episode`` answers the pixels after compression:
    write what the camera saw, not what a bag has given. The instruction is written once, latched.

    Raises:
        ConfigurationError: ``path`` exists already, or ``rosbags`` is not installed.
        ValueError: The episode is empty, its instruction changes, or a camera has no topic.
    """
    topics = topics or EpisodeTopics()
    _check_writable(episode, topics)
    with new_bag(Path(path), episode.metadata) as bag:
        start = episode.observations[0]
        bag.write_latched_sentence(topics.instruction, start.stamp_ns, start.instruction)
        for index, seen in enumerate(episode.observations):
            for camera, topic in topics.images.items():
                jpeg = encode_jpeg(seen.images[camera])
                bag.write_jpeg(topic, seen.stamp_ns, camera, jpeg)
            bag.write_joints(topics.state, seen.stamp_ns, episode.state_names, seen.state)
            if episode.actions is not None and topics.action is not None:
                action = episode.actions[index]
                bag.write_joints(topics.action, seen.stamp_ns, episode.action_names, action)


def _check_writable(episode: Episode, topics: EpisodeTopics) -> None:
    if not episode.observations:
        raise ValueError("an episode without observations cannot be written")
    if len({seen.instruction for seen in episode.observations}) > 1:
        raise ValueError("the instruction changes within the episode; write one bag for each")
    for seen in episode.observations:
        if set(seen.images) != set(topics.images):
            raise ValueError(
                f"the cameras {sorted(seen.images)} do not fit the topics of "
                f"{sorted(topics.images)}"
            )


def _paired_actions(
    bag: BagSamples, topic: str, pace: list[int], topics: EpisodeTopics
) -> np.ndarray:
    """One action for each image: sensed with it or after it, and before the next image."""
    actions = bag.joint_values(topic)
    if len(actions) != len(pace):
        raise bag.error(
            topic,
            f"unequal lengths: {len(actions)} actions for {len(pace)} images on {topics.pace}; "
            "record one action for each image, or read the bag without actions",
        )
    for index, sample in enumerate(bag.topics[topic]):
        too_late = index + 1 < len(pace) and sample.stamp_ns >= pace[index + 1]
        if sample.stamp_ns < pace[index] or too_late:
            raise bag.error(
                topic,
                f"action {index} (stamp {sample.stamp_ns} ns) does not lie between image {index} "
                f"(stamp {pace[index]} ns) and the next one, so it cannot be its answer",
            )
    return actions


def _first_complete(bag: BagSamples, topics: EpisodeTopics, pace: list[int]) -> int:
    """Index of the first image for which every other topic has a sample."""
    sources = (*topics.images.values(), topics.state, topics.instruction)
    latest = max(sources, key=lambda topic: bag.topics[topic][0].stamp_ns)
    first = int(np.searchsorted(pace, bag.topics[latest][0].stamp_ns))
    if first == len(pace):
        raise bag.error(latest, f"its first message is later than every image on {topics.pace}")
    return first


def _assemble(bag: BagSamples, topics: EpisodeTopics, pace: list[int]) -> list[Observation]:
    states = bag.joint_values(topics.state)
    cameras = {name: _Camera(bag, topic) for name, topic in topics.images.items()}
    instructions = [sample.stamp_ns for sample in bag.topics[topics.instruction]]
    observations = []
    for stamp_ns in pace:
        spoken = bisect_right(instructions, stamp_ns) - 1
        observations.append(
            Observation(
                stamp_ns=stamp_ns,
                images={name: camera.newest(stamp_ns) for name, camera in cameras.items()},
                state=states[_newest(bag, topics.state, stamp_ns)],
                instruction=bag.sentence(topics.instruction, spoken),
            )
        )
    return observations


class _Camera:
    """Decodes each image of a topic at most once; time goes forwards."""

    def __init__(self, bag: BagSamples, topic: str) -> None:
        self._bag = bag
        self._topic = topic
        self._index = -1
        self._image = np.zeros((1, 1, 3), np.uint8)

    def newest(self, stamp_ns: int) -> np.ndarray:
        index = _newest(self._bag, self._topic, stamp_ns)
        if index != self._index:
            self._index, self._image = index, self._bag.image(self._topic, index)
        return self._image


def _newest(bag: BagSamples, topic: str, stamp_ns: int) -> int:
    """Index of the newest sample that is not later than ``stamp_ns``."""
    samples = bag.topics[topic]
    index = bisect_right(samples, stamp_ns, key=lambda sample: sample.stamp_ns) - 1
    age_ns = stamp_ns - samples[index].stamp_ns
    if age_ns > MAX_SAMPLE_AGE_NS:
        raise bag.error(
            topic,
            f"no message for {age_ns / 1e6:.0f} ms before the image at {stamp_ns} ns: the source "
            "had stopped; cut the bag there",
        )
    return index
