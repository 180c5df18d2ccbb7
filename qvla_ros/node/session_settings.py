"""From the node's parameters and the policy to the settings of the parts; all checks are here."""

import dataclasses
from typing import Protocol

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.conversions import PolicyCard
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.policy import serving_settings
from qvla_ros.policy.chunk_strategy import ChunkStrategy
from qvla_ros.policy.frame_sync import SyncSettings
from qvla_ros.policy.inference_loop import LoopSettings
from qvla_ros.policy.schedule import SchedulerSettings
from qvla_ros.policy.self_test import TestedPolicy
from qvla_ros.policy.serving_settings import ServingParameters
from qvla_ros.sensor_messages import SECOND_NS


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
    told = parameters.image_transports
    return serving_settings.by_camera("parameter image_transports", told, policy.image_names)


def orientations(policy: NodePolicy, parameters: NodeParameters) -> dict[str, str]:
    """Camera name to how its images are turned; ``ConfigurationError`` if it does not fit."""
    told = parameters.image_orientations
    return serving_settings.by_camera("parameter image_orientations", told, policy.image_names)


def serving_parameters(parameters: NodeParameters) -> ServingParameters:
    """Those that a replay can be told as well."""
    names = [one.name for one in dataclasses.fields(ServingParameters)]
    return ServingParameters(**{name: getattr(parameters, name) for name in names})


def scheduler_settings(policy: NodePolicy, parameters: NodeParameters) -> SchedulerSettings:
    """The limits in time and of the actions."""
    return serving_settings.scheduler_settings(policy, serving_parameters(parameters))


def chunk_strategy(card: PolicyCard, horizon: int) -> ChunkStrategy:
    """How overlapping chunks become one; ``ConfigurationError`` if these must not be averaged."""
    parameters = serving_parameters(card.parameters)
    return serving_settings.chunk_strategy(card.action_names, horizon, parameters)


def loop_settings(parameters: NodeParameters) -> LoopSettings:
    """How the worker serves."""
    return LoopSettings(
        parameters.warmup_count,
        failure_limit=parameters.failure_limit,
        silence_limit_ns=_ns(parameters.silence_limit_s),
    )


def sync_settings(policy: NodePolicy, parameters: NodeParameters) -> SyncSettings:
    """How inputs are put together."""
    serving = serving_parameters(parameters)
    interval_ns = serving_settings.request_interval(policy, serving)
    settings = serving_settings.sync_settings(serving)
    return dataclasses.replace(settings, request_interval_ns=interval_ns)


def _ns(seconds: float) -> int:
    return round(seconds * SECOND_NS)
