"""How a frozen dataclass declares a node's parameters: each field once, with what ROS tools show."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from qvla_ros.errors import ConfigurationError

UNSET = ("",)
"""Stands for an empty list, whose type rclpy could not tell."""

Values = TypeVar("Values")


def parameter(
    default: Any,
    description: str,
    limits: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
    read_only: bool = False,
) -> Any:
    """A field of a dataclass that is a parameter.

    Args:
        default: Gives the type; a tuple is a list for ROS.
        description: A sentence.
        limits: Least and greatest value.
        choices: Allowed values; of the entries, for a list.
        read_only: It can be set at launch only.
    """
    metadata = {
        "description": description,
        "limits": limits,
        "choices": tuple(choices),
        "read_only": read_only,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_values(values: Any) -> None:
    """``ConfigurationError`` if a field is out of its range or not one of its choices."""
    for entry in dataclasses.fields(values):
        choices, value = entry.metadata["choices"], getattr(values, entry.name)
        told = value if isinstance(value, tuple) else (value,)
        if choices and not set(told) <= set(choices):
            raise ConfigurationError(
                f"parameter {entry.name} is {value!r}: choose {', '.join(choices)}"
            )
        limits = entry.metadata["limits"]
        if limits is not None and not limits[0] <= value <= limits[1]:
            raise ConfigurationError(
                f"parameter {entry.name} is {value}: it must be in {limits[0]} to {limits[1]}"
            )


def descriptor(entry: dataclasses.Field) -> ParameterDescriptor:
    """What ROS tools show of a parameter and check it against."""
    metadata = entry.metadata
    message = ParameterDescriptor(
        description=metadata["description"], read_only=metadata["read_only"]
    )
    if metadata["choices"]:
        message.additional_constraints = "choose from " + ", ".join(metadata["choices"])
    if metadata["limits"] is not None:
        low, high = metadata["limits"]
        if isinstance(entry.default, int):
            message.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        else:
            message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return message


def declare_parameters(node: Node, kind: type) -> None:
    """Declare every field of the dataclass ``kind`` on ``node``."""
    for entry in dataclasses.fields(kind):
        default = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        node.declare_parameter(entry.name, default, descriptor(entry))


def read_parameters(node: Node, kind: type[Values]) -> Values:
    """The present values.

    Raises:
        ConfigurationError: A value is out of its range or not one of its choices.
    """
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = node.get_parameter(entry.name).value
        values[entry.name] = tuple(value) if isinstance(entry.default, tuple) else value
    return kind(**values)
