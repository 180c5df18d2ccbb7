"""Which topics of a bag hold what a robot's policy needs, and in which order."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.policy.frame_sync import STATE, camera_source
from qvla_ros.policy.pose_state import POSE, uses_joints, uses_pose

_IMAGES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
_JOINTS = ("sensor_msgs/msg/JointState",)
_POSE = ("geometry_msgs/msg/PoseStamped",)
_TEXT = ("std_msgs/msg/String",)


@dataclass(frozen=True, slots=True)
class BagLayout:
    """Where the parts of an episode stand in a bag.

    Attributes:
        images: Camera name to topic (``CompressedImage`` or ``Image``), in the robot's order; the
            first camera sets the pace.
        state_names: What to pick from the state, in the model's order.
        action_names: What to pick from the recorded actions, in the model's order.
        state: Topic of the proprioception, ``sensor_msgs/JointState``; read if a name of it is
            wanted.
        pose: Topic of a ``geometry_msgs/PoseStamped``; read if a name of it is wanted.
        action: Topic of the executed actions, ``sensor_msgs/JointState``; ``None``: not wanted.
        require_actions: Whether a bag without the topic ``action`` is refused.
        instruction: Topic of the task, ``std_msgs/String``.
        instruction_text: The task itself; the topic is not read then.
        arrival_from_stamps: Whether a message came when its stamp says instead of when it was
            recorded, for bags whose recorder had another clock than the sensors.
        orientations: Camera name to how its images are turned (``image_codec.ORIENTATIONS``);
            those that are not named are taken as they are.
    """

    images: Mapping[str, str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    state: str = "/robot/state"
    pose: str = "/robot/pose"
    action: str | None = "/robot/action"
    require_actions: bool = False
    instruction: str = "/instruction"
    instruction_text: str | None = None
    arrival_from_stamps: bool = False
    orientations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        topics = [*self.images.values(), *self._state_sources]
        topics += [one for one in (self.action, self.spoken) if one is not None]
        for topic, count in Counter(topics).items():
            if count > 1:
                raise ConfigurationError(f"topic {topic} cannot stand for {count} inputs at once")

    @classmethod
    def of_robot(cls, robot: RobotConstants) -> "BagLayout":
        """The topics that the node uses by default, with compressed images."""
        images = {name: f"/camera/{name}/image_raw/compressed" for name in robot.image_names}
        return cls(images, robot.state_names, robot.action_names)

    @property
    def orientation_of(self) -> dict[str, str]:
        """Every camera, in order, and how its images are turned."""
        return {name: self.orientations.get(name, "as_is") for name in self.images}

    @property
    def spoken(self) -> str | None:
        """Topic to read the instruction from, if any."""
        return self.instruction if self.instruction_text is None else None

    @property
    def sources(self) -> dict[str, str]:
        """Topic to the name under which its samples are synchronised, the first camera first."""
        cameras = {topic: camera_source(name) for name, topic in self.images.items()}
        return {**cameras, **self._state_sources}

    @property
    def _state_sources(self) -> dict[str, str]:
        joints = {self.state: STATE} if uses_joints(self.state_names) else {}
        return joints | ({self.pose: POSE} if uses_pose(self.state_names) else {})

    @property
    def types(self) -> dict[str, tuple[str, ...]]:
        """Topic to the message types that it may have."""
        types: dict[str, tuple[str, ...]] = dict.fromkeys(self.images.values(), _IMAGES)
        for topic, source in self._state_sources.items():
            types[topic] = _JOINTS if source == STATE else _POSE
        if self.action is not None:
            types[self.action] = _JOINTS
        if self.spoken is not None:
            types[self.spoken] = _TEXT
        return types
