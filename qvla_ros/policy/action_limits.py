"""What an action may be at most, dimension by dimension; ``qvla limits`` measures it from bags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qvla_ros.errors import ConfigurationError

_FIELDS = ("lower", "upper", "max_step")


@dataclass(frozen=True, slots=True)
class ActionLimits:
    """Bounds in robot units, ``float32 [action_dim]`` each, in the order of the action names.

    Attributes:
        names: Name of each dimension.
        lower: Least value.
        upper: Greatest value.
        max_step: Greatest change from one row that is followed to the next, within a chunk and
            where one chunk takes over from another.
    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    max_step: np.ndarray

    def violation(self, actions: np.ndarray) -> str | None:
        """The first dimension of ``actions [horizon, action_dim]`` out of its limits, in words."""
        steps = np.abs(np.diff(actions, axis=0)) - self._rounding()
        for column, name in enumerate(self.names):
            values = actions[:, column]
            worst = values[
                np.argmax(
                    np.maximum(values - self.upper[column], 0)
                    + np.maximum(self.lower[column] - values, 0)
                )
            ]
            if not self.lower[column] <= worst <= self.upper[column]:
                return f"{name} is {worst:.4g}, its limits are {self.lower[column]:.4g} to {self.upper[column]:.4g}"
            step = steps[:, column].max(initial=0.0)
            if step > self.max_step[column]:
                return f"{name} changes by {step:.4g} in one step, its limit is {self.max_step[column]:.4g}"
        return None

    def _rounding(self) -> np.ndarray:
        """How far a difference of two rows may be off, because they are float32."""
        return 2 * np.finfo(np.float32).eps * np.maximum(np.abs(self.lower), np.abs(self.upper))

    def clamp(self, actions: np.ndarray) -> tuple[np.ndarray, int]:
        """``actions [horizon, action_dim]`` forced into the limits, and how many values changed.

        Steps are forced from the first row on, so a row follows the row before it, not its own
        wish.
        """
        clamped = np.clip(actions, self.lower, self.upper)
        for row in range(1, len(clamped)):
            before = clamped[row - 1]
            clamped[row] = np.clip(clamped[row], before - self.max_step, before + self.max_step)
        return clamped, int(np.count_nonzero(clamped != actions))


def read_limits(path: Path, action_names: Sequence[str]) -> ActionLimits:
    """Read ``limits: {<action name>: {lower, upper, max_step}}`` from a YAML file.

    Other top-level keys, such as the measured false-positive rates, are for people.

    Raises:
        ConfigurationError: The file cannot be read, or does not limit exactly these actions.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the limits {path} cannot be read: {error}") from error
    table = document.get("limits") if isinstance(document, Mapping) else None
    if not isinstance(table, Mapping) or set(table) != set(action_names):
        found = ", ".join(map(str, table)) if isinstance(table, Mapping) else "nothing"
        raise ConfigurationError(
            f"{path} limits {found}; the actions are {', '.join(action_names)}: "
            "make it with `qvla limits`"
        )
    columns = {
        field: [_number(path, table, name, field) for name in action_names] for field in _FIELDS
    }
    limits = ActionLimits(
        tuple(action_names),
        **{field: np.array(values, np.float32) for field, values in columns.items()},
    )
    if (limits.lower > limits.upper).any() or (limits.max_step < 0).any():
        raise ConfigurationError(f"{path}: a lower limit is above the upper one, or max_step < 0")
    return limits


def _number(path: Path, table: Mapping[str, Any], name: str, field: str) -> float:
    entry = table[name]
    value = entry.get(field) if isinstance(entry, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ConfigurationError(
            f"{path}: limits.{name}.{field} must be a finite number, not {value!r}"
        )
    return float(value)
