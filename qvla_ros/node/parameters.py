"""The policy node's parameters, each declared once: here."""

from dataclasses import dataclass

from qvla_ros.image_codec import ORIENTATIONS
from qvla_ros.msg import ActionChunk
from qvla_ros.node.declaration import UNSET, check_values, parameter

ACTION_KINDS = {
    "unspecified": ActionChunk.ACTION_UNSPECIFIED,
    "joint_position": ActionChunk.ACTION_JOINT_POSITION,
    "joint_delta": ActionChunk.ACTION_JOINT_DELTA,
    "joint_velocity": ActionChunk.ACTION_JOINT_VELOCITY,
    "eef_pose": ActionChunk.ACTION_EEF_POSE,
    "eef_delta": ActionChunk.ACTION_EEF_DELTA,
    "eef_twist": ActionChunk.ACTION_EEF_TWIST,
}
ROTATIONS = {
    "none": ActionChunk.ROTATION_NONE,
    "axis_angle": ActionChunk.ROTATION_AXIS_ANGLE,
    "euler_xyz": ActionChunk.ROTATION_EULER_XYZ,
    "quaternion_xyzw": ActionChunk.ROTATION_QUATERNION_XYZW,
    "6d": ActionChunk.ROTATION_6D,
}
TRANSPORTS = ("raw", "compressed")
STRATEGIES = ("latest_only", "blend", "ensemble")


@dataclass(frozen=True, slots=True)
class NodeParameters:
    """The values that a configured node runs with; the fields' metadata declares them to ROS."""

    checkpoint: str = parameter("", "Path of the packed checkpoint (*.qvla.safetensors).")
    device: str = parameter(
        "auto",
        "Where the network runs; auto is CUDA where the packed kernels run on it, else the CPU.",
        choices=("auto", "cpu", "cuda"),
    )
    threads: int = parameter(0, "Threads of the inference; 0 leaves it to torch.", (0, 256))
    image_transports: tuple[str, ...] = parameter(
        ("raw",),
        "How the cameras are published: one entry for all, or one for each camera of the "
        "checkpoint.",
        choices=TRANSPORTS,
        read_only=True,
    )
    image_orientations: tuple[str, ...] = parameter(
        ("as_is",),
        "How images are turned before the model sees them, one entry for all cameras or one for "
        "each: mirror swaps left and right, flip top and bottom.",
        choices=ORIENTATIONS,
    )
    state_names: tuple[str, ...] = parameter(
        UNSET,
        "Names to pick from robot/state, in the model's order; pose.x, pose.y, pose.z, pose.rx, "
        "pose.ry, pose.rz (axis-angle) and pose.qx ... pose.qw are taken from the pose; one empty "
        "name stands for the names in the checkpoint.",
    )
    pose_source: str = parameter(
        "topic",
        "Where pose.* comes from: the topic robot/pose, or TF from pose_parent to pose_child.",
        choices=("topic", "tf"),
    )
    pose_parent: str = parameter("base_link", "Frame in which the pose is told, for TF.")
    pose_child: str = parameter("tool0", "Frame whose pose is told, for TF.")
    request_period_s: float = parameter(
        0.0, "Least time between two inferences, s; 0 is half of the chunk's horizon.", (0.0, 60.0)
    )
    chunk_ttl_s: float = parameter(
        0.0,
        "A chunk may be followed until its observation is this old, s; 0 is the chunk's horizon.",
        (0.0, 60.0),
    )
    max_observation_age_s: float = parameter(
        0.25, "An observation older than this is not used, s.", (0.001, 60.0)
    )
    max_skew_s: float = parameter(
        0.05, "How much older than the first camera's image another input may be, s.", (0.0, 10.0)
    )
    sync_wait_s: float = parameter(
        0.02, "How long to wait for inputs as new as the first camera's image, s.", (0.0, 10.0)
    )
    future_tolerance_s: float = parameter(
        0.02, "How far a stamp may lie after the node's clock, s.", (0.0, 10.0)
    )
    warmup_count: int = parameter(2, "First inferences that the percentiles leave out.", (0, 1000))
    failure_limit: int = parameter(5, "Inferences failed in a row that latch a fault.", (1, 1000))
    reset_cooldown_s: float = parameter(
        1.0, "A fault cannot be reset earlier than this after it was latched, s.", (0.0, 60.0)
    )
    limits_file: str = parameter(
        "", "YAML file of the actions' limits, from `qvla limits`; empty: any finite value."
    )
    out_of_limits: str = parameter(
        "refuse",
        "What to do with a chunk beyond its limits: refuse the whole of it, which counts as a "
        "failure, or clamp it and tell clipped_count.",
        choices=("refuse", "clamp"),
    )
    chunk_strategy: str = parameter(
        "latest_only", "How overlapping chunks become one action.", choices=STRATEGIES
    )
    blend_s: float = parameter(
        0.1, "Passage from one chunk to the next with the strategy blend, s.", (0.001, 10.0)
    )
    ensemble_decay: float = parameter(
        0.01,
        "Weights exp(-decay * i), the oldest chunk first, with the strategy ensemble.",
        (-10.0, 10.0),
    )
    heartbeat_period_s: float = parameter(
        0.1, "Time between two heartbeats, s; on a steady clock.", (0.01, 10.0), read_only=True
    )
    silence_limit_s: float = parameter(
        2.0, "Longer without a chunk while serving is an error on /diagnostics, s.", (0.01, 600.0)
    )
    memory_reserve_mb: int = parameter(
        512,
        "A checkpoint is refused if it would leave less memory than this; less while it serves is "
        "a warning, MB.",
        (0, 1_000_000),
    )
    temperature_warn_c: float = parameter(
        90.0, "A thermal zone hotter than this is a warning on /diagnostics, degC.", (0.0, 200.0)
    )
    self_test_tolerance: float = parameter(
        0.05,
        "How far the answer to the golden input may be from the checkpoint's, as a share of the "
        "largest action.",
        (0.0, 1.0),
    )
    action_kind: str = parameter(
        "unspecified", "What the numbers of an action drive.", choices=tuple(ACTION_KINDS)
    )
    absolute: bool = parameter(False, "Whether actions are targets (true) or changes (false).")
    rotation: str = parameter(
        "none", "How rotations are written in an action.", choices=tuple(ROTATIONS)
    )
    frame_id: str = parameter("", "Frame of Cartesian actions.")
    gripper_name: str = parameter("", "Name of the gripper's column of an action; empty: none.")
    gripper_open: float = parameter(1.0, "Value of an open gripper.")
    gripper_closed: float = parameter(0.0, "Value of a closed gripper.")
    publish_command: bool = parameter(
        False,
        "Whether to publish the action that is due on robot/command; off is a dry run.",
        read_only=True,
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def chosen_state_names(self) -> tuple[str, ...]:
        """The names to pick from the robot's state; empty for those in the checkpoint."""
        return () if self.state_names == UNSET else self.state_names
