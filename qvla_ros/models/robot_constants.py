"""What a released OpenVLA-OFT folder does not say about the robot that it was trained for.

The original code picks these numbers by looking for words in its command line; here they are a
table, chosen by the shapes of the files (action and proprioception size) or named by the user.
"""

from dataclasses import dataclass, replace
from typing import Literal

from qvla_ros.errors import UnsupportedModelError

Normalization = Literal["q99", "min_max"]


@dataclass(frozen=True, slots=True)
class RobotConstants:
    """Action and observation conventions of one training data set.

    Attributes:
        name: Key of the table.
        horizon: Actions in a chunk.
        action_names: One name an action dimension; its length is the action size.
        state_names: One name a proprioception dimension; its length is the state size.
        image_names: Cameras in the order in which the network sees them.
        normalization: ``q99`` maps the 1st and 99th percentile to -1 and 1; ``min_max`` the extremes.
        period_ns: Time between two actions, nanoseconds.
    """

    name: str
    horizon: int
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    image_names: tuple[str, ...]
    normalization: Normalization
    period_ns: int

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        """Numbers in one proprioception vector."""
        return len(self.state_names)


_EEF = ("eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz")
_EEF_DELTA = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
_ALOHA_JOINTS = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in (
        "waist",
        "shoulder",
        "elbow",
        "forearm",
        "wrist_angle",
        "wrist_rotate",
        "gripper",
    )
)

ROBOT_CONSTANTS = {
    constants.name: constants
    for constants in (
        RobotConstants(
            name="libero",
            horizon=8,
            action_names=_EEF_DELTA,
            state_names=(*_EEF, "gripper_left", "gripper_right"),
            image_names=("primary", "wrist"),
            normalization="q99",
            period_ns=50_000_000,
        ),
        RobotConstants(
            name="aloha",
            horizon=25,
            action_names=_ALOHA_JOINTS,
            state_names=_ALOHA_JOINTS,
            image_names=("primary", "left_wrist", "right_wrist"),
            normalization="min_max",
            period_ns=40_000_000,
        ),
        RobotConstants(
            name="bridge",
            horizon=5,
            action_names=_EEF_DELTA,
            state_names=(*_EEF, "gripper"),
            image_names=("primary",),
            normalization="q99",
            period_ns=200_000_000,
        ),
    )
}


def robot_constants(name: str) -> RobotConstants:
    """Look the constants up by name.

    Raises:
        UnsupportedModelError: There is no such entry.
    """
    try:
        return ROBOT_CONSTANTS[name]
    except KeyError:
        known = ", ".join(ROBOT_CONSTANTS)
        raise UnsupportedModelError(f"unknown robot {name!r}: choose one of {known}") from None


def single_step(constants: RobotConstants) -> RobotConstants:
    """The same robot as autoregressive OpenVLA sees it: one image, no state, one action.

    Raises:
        UnsupportedModelError: OpenVLA's action bins are not made for this robot.
    """
    if constants.normalization != "q99":
        raise UnsupportedModelError(
            f"robot {constants.name!r} has {constants.normalization} statistics; the action bins "
            "of OpenVLA span the 1st to the 99th percentile"
        )
    return replace(constants, horizon=1, state_names=(), image_names=constants.image_names[:1])


def infer_robot_constants(action_dim: int, state_dim: int) -> RobotConstants:
    """Find the constants whose sizes match the action head and the proprioception projector.

    Raises:
        UnsupportedModelError: No entry, or more than one, has these sizes.
    """
    found = [
        constants
        for constants in ROBOT_CONSTANTS.values()
        if (constants.action_dim, constants.state_dim) == (action_dim, state_dim)
    ]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"no robot in the table has {action_dim} action and {state_dim} state dimensions: "
            f"name one of {', '.join(ROBOT_CONSTANTS)} with --robot, or add it to "
            "qvla_ros/models/robot_constants.py"
        )
    return found[0]
