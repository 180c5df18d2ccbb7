"""From the node's parameters and the policy to the settings of the parts; all checks are here."""

from pathlib import Path
from typing import Protocol

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.conversions import PolicyCard
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.policy.action_limits import read_limits
from qvla_ros.policy.chunk_strategy import Blend, ChunkStrategy, Ensemble, LatestOnly
from qvla_ros.policy.frame_sync import SyncSettings, request_interval_ns
from qvla_ros.policy.inference_loop import LoopSettings
from qvla_ros.policy.schedule import SchedulerSettings
from qvla_ros.policy.self_test import TestedPolicy
from qvla_ros.sensor_messages import SECOND_NS

AVERAGED_CHANGES = ("none", "axis_angle", "euler_xyz")
"""Rotations that may be averaged where they are small changes; no absolute rotation may."""


class NodePolicy(TestedPolicy, Protocol):
    """What the node needs to know of a policy, beside how to run it."""

    model_id: str
    checkpoint_sha256: str
    quant_tag: str


def policy_card(policy: NodePolicy, parameters: NodeParameters) -> PolicyCard:
    """What all chunks have in common; ``ConfigurationError`` if the gripper is no column."""
    card = PolicyCard(
        model_id=policy.model_id,
        checkpoint_sha256=policy.checkpoint_sha256,
        quant_tag=policy.quant_tag,
        action_names=tuple(policy.action_names),
        parameters=parameters,
    )
    card.gripper_index  # noqa: B018  a wrong name is to be told now, not with the first chunk
    return card


def state_names(policy: NodePolicy, parameters: NodeParameters) -> tuple[str, ...]:
    """The names of the proprioception; ``ConfigurationError`` if they are too few or many."""
    names = parameters.chosen_state_names or tuple(policy.state_names)
    if len(names) != len(policy.state_names):
        raise ConfigurationError(
            f"parameter state_names has {len(names)} names, the model wants "
            f"{len(policy.state_names)} ({', '.join(policy.state_names)})"
        )
    return names


def transports(policy: NodePolicy, parameters: NodeParameters) -> dict[str, str]:
    """Camera name to ``"raw"`` or ``"compressed"``; ``ConfigurationError`` if it does not fit."""
    told, cameras = parameters.image_transports, policy.image_names
    if len(told) not in (1, len(cameras)):
        raise ConfigurationError(
            f"parameter image_transports has {len(told)} entries: give one, or one for each of "
            f"the cameras {', '.join(cameras)}"
        )
    return dict(zip(cameras, told * len(cameras) if len(told) == 1 else told, strict=False))


def scheduler_settings(policy: NodePolicy, parameters: NodeParameters) -> SchedulerSettings:
    """The limits in time and of the actions."""
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


def chunk_strategy(card: PolicyCard, horizon: int) -> ChunkStrategy:
    """How overlapping chunks become one; ``ConfigurationError`` if these must not be averaged."""
    parameters = card.parameters
    if parameters.chunk_strategy == "latest_only":
        return LatestOnly()
    rotation, absolute = parameters.rotation, parameters.absolute
    if rotation != "none" and (absolute or rotation not in AVERAGED_CHANGES):
        raise ConfigurationError(
            f"chunk_strategy {parameters.chunk_strategy} would average rotations of the kind "
            f"{rotation} ({'absolute' if absolute else 'changes'}): use latest_only"
        )
    averaged = np.ones(len(card.action_names), dtype=bool)
    if card.gripper_index >= 0:
        averaged[card.gripper_index] = False
    if parameters.chunk_strategy == "blend":
        return Blend(averaged, _ns(parameters.blend_s))
    return Ensemble(averaged, horizon, parameters.ensemble_decay)


def loop_settings(parameters: NodeParameters) -> LoopSettings:
    """How the worker serves."""
    return LoopSettings(
        parameters.warmup_count,
        failure_limit=parameters.failure_limit,
        silence_limit_ns=_ns(parameters.silence_limit_s),
    )


def sync_settings(policy: NodePolicy, parameters: NodeParameters) -> SyncSettings:
    """How inputs are put together."""
    return SyncSettings(
        max_age_ns=_ns(parameters.max_observation_age_s),
        max_skew_ns=_ns(parameters.max_skew_s),
        wait_ns=_ns(parameters.sync_wait_s),
        future_tolerance_ns=_ns(parameters.future_tolerance_s),
        request_interval_ns=request_interval_ns(
            policy.horizon, policy.period_ns, _ns(parameters.request_period_s)
        ),
    )


def _ns(seconds: float) -> int:
    return round(seconds * SECOND_NS)
