"""From the parameters that decide how a policy is served to the settings of the parts.

The node and the replay both serve by them, so that a replay is the robot's configuration.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import ORIENTATIONS
from qvla_ros.policy.action_limits import read_limits
from qvla_ros.policy.chunk_strategy import Blend, ChunkStrategy, Ensemble, LatestOnly
from qvla_ros.policy.frame_sync import SyncSettings, request_interval_ns
from qvla_ros.policy.schedule import SchedulerSettings

AVERAGED_CHANGES = ("none", "axis_angle", "euler_xyz")
"""Rotations that may be averaged where they are small changes; no absolute rotation may."""

_CHOICES = {
    "out_of_limits": ("refuse", "clamp"),
    "chunk_strategy": ("latest_only", "blend", "ensemble"),
    "image_orientations": ORIENTATIONS,
    "rotation": (*AVERAGED_CHANGES, "quaternion_xyzw", "6d"),
}
_POSITIVE = ("max_observation_age_s", "blend_s", "failure_limit")
_NOT_NEGATIVE = (
    *("request_period_s", "chunk_ttl_s", "max_skew_s", "sync_wait_s", "future_tolerance_s"),
    "warmup_count",
)


class Spoken(Protocol):
    """What must be known of a policy."""

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""

    @property
    def period_ns(self) -> int:
        """Time between two actions."""

    @property
    def action_names(self) -> Sequence[str]:
        """One name an action dimension."""


@dataclass(frozen=True, slots=True)
class ServingParameters:
    """The node's parameters of the same names; ``docs/ros-interface.md`` tells what they mean."""

    image_orientations: tuple[str, ...] = ("as_is",)
    state_names: tuple[str, ...] = ("",)
    request_period_s: float = 0.0
    chunk_ttl_s: float = 0.0
    max_observation_age_s: float = 0.25
    max_skew_s: float = 0.05
    sync_wait_s: float = 0.02
    future_tolerance_s: float = 0.02
    warmup_count: int = 2
    failure_limit: int = 5
    limits_file: str = ""
    out_of_limits: str = "refuse"
    chunk_strategy: str = "latest_only"
    blend_s: float = 0.1
    ensemble_decay: float = 0.01
    absolute: bool = False
    rotation: str = "none"
    gripper_name: str = ""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not {*(value if isinstance(value, tuple) else (value,))} <= {*allowed}:
                raise ConfigurationError(
                    f"parameter {name} is {value!r}: use one of {', '.join(allowed)}"
                )
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(
                    f"parameter {name} has to be positive, not {getattr(self, name)}"
                )
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(
                    f"parameter {name} cannot be negative: {getattr(self, name)}"
                )


def by_camera(what: str, told: Sequence[str], cameras: Sequence[str]) -> dict[str, str]:
    """Each camera, in order, and what is told of it.

    Args:
        what: Is told, for the error.
        told: One word for all cameras, or one for each.
        cameras: Names.

    Raises:
        ConfigurationError: They are too few or too many.
    """
    if len(told) not in (1, len(cameras)):
        raise ConfigurationError(
            f"{what} has {len(told)} entries: give one, or one for each of the cameras "
            f"{', '.join(cameras)}"
        )
    each = [told[0]] * len(cameras) if len(told) == 1 else told
    return dict(zip(cameras, each, strict=True))


def scheduler_settings(policy: Spoken, parameters: ServingParameters) -> SchedulerSettings:
    """The limits in time and of the actions; ``ConfigurationError`` if there is no such file."""
    limits = None
    if parameters.limits_file:
        limits = read_limits(Path(parameters.limits_file), policy.action_names)
    return SchedulerSettings(
        ttl_ns=_ns(parameters.chunk_ttl_s) or policy.horizon * policy.period_ns,
        max_observation_age_ns=_ns(parameters.max_observation_age_s),
        future_tolerance_ns=_ns(parameters.future_tolerance_s),
        limits=limits,
        clamp=parameters.out_of_limits == "clamp",
    )


def chunk_strategy(
    action_names: Sequence[str],
    horizon: int,
    parameters: ServingParameters,
    grippers: Collection[int] = (),
) -> ChunkStrategy:
    """How overlapping chunks become one.

    Args:
        action_names: One an action dimension.
        horizon: Actions in a chunk.
        parameters: They name the gripper's column, which is not averaged.
        grippers: Other columns that are not.

    Raises:
        ConfigurationError: These must not be averaged, or the gripper is no column.
    """
    if parameters.chunk_strategy == "latest_only":
        return LatestOnly()
    rotation, absolute = parameters.rotation, parameters.absolute
    if rotation != "none" and (absolute or rotation not in AVERAGED_CHANGES):
        raise ConfigurationError(
            f"chunk_strategy {parameters.chunk_strategy} would average rotations of the kind "
            f"{rotation} ({'absolute' if absolute else 'changes'}): use latest_only"
        )
    averaged = np.ones(len(action_names), dtype=bool)
    averaged[list(grippers)] = False
    column = gripper_column(action_names, parameters.gripper_name)
    if column >= 0:
        averaged[column] = False
    if parameters.chunk_strategy == "blend":
        return Blend(averaged, _ns(parameters.blend_s))
    return Ensemble(averaged, horizon, parameters.ensemble_decay)


def gripper_column(action_names: Sequence[str], name: str) -> int:
    """The column of that name, -1 for no name; ``ConfigurationError`` if it is none."""
    if not name:
        return -1
    if name not in action_names:
        raise ConfigurationError(
            f"parameter gripper_name is {name!r}, but the actions are {', '.join(action_names)}"
        )
    return list(action_names).index(name)


def request_interval(policy: Spoken, parameters: ServingParameters) -> int:
    """The least time from one image that is used to the next, nanoseconds."""
    period_ns = _ns(parameters.request_period_s)
    return request_interval_ns(policy.horizon, policy.period_ns, period_ns)


def sync_settings(parameters: ServingParameters) -> SyncSettings:
    """How inputs are put together, whichever of them are used."""
    return SyncSettings(
        max_age_ns=_ns(parameters.max_observation_age_s),
        max_skew_ns=_ns(parameters.max_skew_s),
        wait_ns=_ns(parameters.sync_wait_s),
        future_tolerance_ns=_ns(parameters.future_tolerance_s),
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
