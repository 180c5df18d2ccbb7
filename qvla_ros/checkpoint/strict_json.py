"""JSON that is read strictly: no duplicate keys, no NaN, no missing, unknown or mistyped field."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.errors import CheckpointError

JsonObject = Mapping[str, object]
"""A JSON object whose inside is not this folder's business."""


def canonical_json(value: object) -> str:
    """The one text of a JSON value: sorted keys, no spaces, UTF-8 unescaped, no NaN or infinity.

    Raises:
        ValueError: A float is not finite.
        TypeError: A value is not JSON.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def parse_object(text: str | bytes, what: str, fault: CheckpointFault) -> dict[str, object]:
    """Parse a JSON object.

    Args:
        text: JSON as text, or as UTF-8 bytes.
        what: What the text is, for the message.
        fault: The fault to report.

    Raises:
        CheckpointError: The text is not UTF-8, not JSON, not an object, repeats a key, or holds
            a number that is not finite.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return result

    def not_finite(word: str) -> NoReturn:
        raise ValueError(f"{word} is not a JSON number")

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=unique, parse_constant=not_finite)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply", fault=fault) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{what} is not valid JSON: {error}", fault=fault) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object", fault=fault)
    return value


class Fields:
    """The fields of one JSON object, each asked for by name and type.

    Args:
        value: The object; anything else is refused.
        where: Where it stands, e.g. ``"manifest.layers[3]"``, for messages.
        names: Exactly the keys that it must have.

    Raises:
        CheckpointError: ``MANIFEST_FIELD``, naming the missing, unknown or mistyped field.
    """

    def __init__(self, value: object, where: str, names: Sequence[str]) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise _field_error(f"{where} must be a JSON object, not {_kind(value)}")
        for name in names:
            if name not in value:
                raise _field_error(f"{where} lacks the field {name!r}")
        for name in sorted(value):
            if name not in names:
                raise _field_error(f"{where} has the unknown field {name!r}")
        self._value: dict[str, object] = value

    def text(self, name: str) -> str:
        """A string."""
        value = self._value[name]
        if not isinstance(value, str):
            raise self._mistyped(name, "a string")
        return value

    def count(self, name: str) -> int:
        """An integer of at least 0."""
        value = self._value[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._mistyped(name, "an integer of at least 0")
        return value

    def number(self, name: str) -> float:
        """A finite number, as a float."""
        return self._as_number(self._value[name], name)

    def numbers(self, name: str) -> dict[str, float]:
        """An object of finite numbers."""
        return {
            key: self._as_number(value, f"{name}.{key}")
            for key, value in self.json_object(name).items()
        }

    def json_object(self, name: str) -> JsonObject:
        """An object with any inside."""
        value = self._value[name]
        if not isinstance(value, dict):
            raise self._mistyped(name, "an object")
        return value

    def items(self, name: str) -> list[object]:
        """A list with any inside."""
        value = self._value[name]
        if not isinstance(value, list):
            raise self._mistyped(name, "a list")
        return value

    def count_or_null(self, name: str) -> int | None:
        """An integer of at least 0, or ``null``."""
        return None if self._value[name] is None else self.count(name)

    def _as_number(self, value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._mistyped(name, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):  # "1e999" is valid JSON text
            raise self._mistyped(name, "a finite number")
        return number

    def _mistyped(self, name: str, expected: str) -> CheckpointError:
        value = self._value.get(name)
        return _field_error(f"{self._where}.{name} must be {expected}, not {_kind(value)}")


def _field_error(message: str) -> CheckpointError:
    return CheckpointError(message, fault=CheckpointFault.MANIFEST_FIELD)


def _kind(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
