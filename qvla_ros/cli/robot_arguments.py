"""How the robot is configured: the node's own parameter file, and words that win over it."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from qvla_ros.policy.serving_settings import ServingParameters

_MILLISECONDS = {
    "request_period_ms": "request_period_s",
    "ttl_ms": "chunk_ttl_s",
    "max_observation_age_ms": "max_observation_age_s",
    "max_skew_ms": "max_skew_s",
    "sync_wait_ms": "sync_wait_s",
    "future_tolerance_ms": "future_tolerance_s",
    "blend_ms": "blend_s",
}
_POSITIVE = ("ttl_ms", "max_observation_age_ms", "max_skew_ms", "blend_ms")
_OTHERS = {
    "image_orientations": "image_orientations",
    "state_names": "state_names",
    "warmup": "warmup_count",
    "failure_limit": "failure_limit",
    "limits": "limits_file",
    "out_of_limits": "out_of_limits",
    "strategy": "chunk_strategy",
    "ensemble_decay": "ensemble_decay",
    "absolute": "absolute",
    "rotation": "rotation",
    "gripper_name": "gripper_name",
}


def add_robot_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the robot is configured."""
    group = parser.add_argument_group(
        "how the robot is configured",
        "the node's parameters, with its defaults; each word wins over --params-file",
    )
    group.add_argument(
        "--params-file",
        type=Path,
        metavar="YAML",
        help="the node's own parameter file; names that are not listed here are not looked at",
    )
    group.add_argument(
        "--request-period-ms",
        type=float,
        help="request_period_s: least time between two inferences (half of the chunk's horizon)",
    )
    group.add_argument(
        "--ttl-ms", type=float, help="chunk_ttl_s: how old a chunk may get (the chunk's horizon)"
    )
    group.add_argument(
        "--limits", type=Path, metavar="YAML", help="limits_file: of actions, from qvla limits"
    )
    group.add_argument(
        "--out-of-limits",
        choices=("refuse", "clamp"),
        help="out_of_limits: refuse such a chunk as a whole, or clamp it (refuse)",
    )
    group.add_argument(
        "--failure-limit", type=int, help="failure_limit: failures in a row that are a fault (5)"
    )
    group.add_argument("--warmup", type=int, help="warmup_count: inferences before the first (2)")
    _add_averaging(group)


def _add_averaging(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--strategy",
        choices=("latest_only", "blend", "ensemble"),
        help="chunk_strategy: what overlapping chunks become (latest_only); the column of "
        "gripper_name is not averaged, without a file all that are known for grippers",
    )
    group.add_argument("--blend-ms", type=float, help="blend_s, with blend (100)")
    group.add_argument("--ensemble-decay", type=float, help="with ensemble (0.01)")
    group.add_argument(
        "--rotation",
        choices=("none", "axis_angle", "euler_xyz", "quaternion_xyzw", "6d"),
        help="how actions write rotations (none); what must not be averaged is refused",
    )
    group.add_argument(
        "--absolute",
        action=argparse.BooleanOptionalAction,
        help="whether actions are targets (--absolute) or changes (--no-absolute, the default)",
    )
    group.add_argument("--gripper-name", metavar="NAME", help="name of the gripper's column")


def serving_parameters(arguments: argparse.Namespace) -> "ServingParameters":
    """What the parameter file says, where no word says otherwise; else the node's defaults.

    Words that the verb does not know count as not given.

    Raises:
        ConfigurationError: The file cannot be read, or a value makes no sense.
    """
    from qvla_ros.policy.serving_settings import ServingParameters

    path: Path | None = getattr(arguments, "params_file", None)
    told = {} if path is None else _of_file(path, ServingParameters())
    for word, name in _OTHERS.items():
        value = getattr(arguments, word, None)
        if value is not None:
            told[name] = str(value) if isinstance(value, Path) else value
    for word, name in _MILLISECONDS.items():
        value = getattr(arguments, word, None)
        if value is not None:
            told[name] = _checked(word, value) / 1e3
    for word, least in (("warmup", 0), ("failure_limit", 1)):
        value = getattr(arguments, word, None)
        if value is not None and value < least:
            raise ConfigurationError(f"--{word.replace('_', '-')} is at least {least}: {value}")
    return ServingParameters(**told)


def _checked(word: str, value: float) -> float:
    flag = f"--{word.replace('_', '-')}"
    if word in _POSITIVE and not value > 0:
        raise ConfigurationError(f"{flag} must be positive, not {value}")
    if not value >= 0:
        raise ConfigurationError(f"{flag} cannot be negative: {value}")
    return value


def _of_file(path: Path, defaults: "ServingParameters") -> dict[str, Any]:
    """The values of a ROS 2 parameter file for the policy node."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the parameters {path} cannot be read: {error}") from error
    sections = list(_sections(document, ""))
    if not sections:
        raise ConfigurationError(
            f"{path} has no parameters of the policy node: they stand under /**/policy (or "
            "policy, or /**), ros__parameters"
        )
    # As ROS does, what is said of this node wins over what is said of all.
    sections.sort(key=lambda one: one[0] != "**")
    given = {name: value for _, section in sections for name, value in section.items()}
    known = dataclasses.asdict(defaults)
    return {
        name: _of_its_type(path, name, value, known[name])
        for name, value in given.items()
        if name in known
    }


def _sections(document: object, node: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Last part of the node's name, and its parameters, of the policy node and of all nodes."""
    if not isinstance(document, Mapping):
        return
    for key, value in document.items():
        if key == "ros__parameters" and node in ("policy", "**") and isinstance(value, Mapping):
            yield node, value
        else:
            yield from _sections(value, str(key).rpartition("/")[2])


def _of_its_type(path: Path, name: str, value: object, default: object) -> Any:
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(map(str, value))
    if isinstance(default, float) and type(value) is int:
        return float(value)  # ROS refuses it; here nothing depends on it
    if type(value) is not type(default):
        raise ConfigurationError(
            f"{path}: {name} is {value!r}, it has to be a {type(default).__name__}"
        )
    return value
