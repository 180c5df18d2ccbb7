"""Frozen dataclasses from JSON, every field checked against its annotation."""

import dataclasses
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], value: object, where: str) -> T:
    """Build a dataclass, and those inside it, from a JSON object.

    Args:
        kind: The dataclass; its fields are numbers, texts, flags, tuples, ``dict[str, ...]``,
            literals, unions of such, or dataclasses.
        value: What was read; lists stand for tuples.
        where: Where it stands, for messages.

    Raises:
        ValueError: A field is missing, unknown, of another type or length, or not finite; or the
            dataclass refuses the values. The message names the field.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in sorted(value.keys() - fields.keys()):
        raise ValueError(f"{where} has the unknown field {name!r}")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the field {name!r}")
    hints = get_type_hints(kind)
    return kind(
        **{name: _convert(hints[name], one, f"{where}.{name}") for name, one in value.items()}
    )


def _convert(hint: Any, value: object, where: str) -> Any:
    arguments = get_args(hint)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object")
        return {key: _convert(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(arguments)}")
        return value
    if origin in (Union, types.UnionType):
        if type(value) in arguments and _finite(value):
            return value
    elif hint is float and type(value) in (int, float) and _finite(value):
        return float(value)  # type: ignore[arg-type]
    elif type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} must be {name}, not {str(value)[:40]!r}")


def _tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ValueError(f"{where} must have {len(arguments)} entries, not {len(value)}")
    return tuple(
        _convert(hint, one, f"{where}[{index}]")
        for index, (hint, one) in enumerate(zip(arguments, value, strict=True))
    )


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
