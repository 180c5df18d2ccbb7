"""A verb's options in a YAML file: read under the command line, written beside each result."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

_NOT_KEPT = ("config", "json", "work", "save_every")  # they do not change the result
_INSTEAD = (
    ({"bits", "uniform"}, {"max_bytes", "max_latency_ms"}),
    ({"bits"}, {"uniform"}),
    ({"plan"}, {"table", "bits", "max_bytes", "max_latency_ms"}),
)
"""Options of which one on the command line takes the place of the others in the file."""


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="file with options of this verb by name (max_bytes: 1000000); the command line wins",
    )


def config_of(words: Sequence[str]) -> Path | None:
    """The file that ``--config`` names, unless help is asked for."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--help", "-h", action="store_true")
    try:
        found = parser.parse_known_args(words)[0]
    except argparse.ArgumentError:  # told by the parser of the verb
        return None
    return None if found.help else found.config


def parse_over(
    path: Path, verb: str, parser: argparse.ArgumentParser, words: Sequence[str]
) -> argparse.Namespace:
    """Parse the words behind a verb, over the options of a file.

    Args:
        path: The file.
        verb: The verb.
        parser: Of the verb, with its options required where they are; it is used up.
        words: What stands behind the verb.

    Raises:
        ConfigurationError: The file cannot be read, or has an unknown or bad option; or something
            is given neither there nor on the command line.
    """
    actions = _destinations(parser)
    required = [name for name, action in actions.items() if action.required]
    defaults = {name: parser.get_default(name) for name in actions}
    _let_everything_be_absent(parser)
    given = _set(parser.parse_intermixed_args(words))
    kept = _set(_File(path, verb, parser).parse())
    for one, other in _INSTEAD:
        for stronger, weaker in ((one, other), (other, one)):
            if stronger & given.keys():
                kept = {name: value for name, value in kept.items() if name not in weaker}
    values = {**defaults, **kept, **given, "verb": verb}
    for name in required:
        if values[name] is None:
            raise ConfigurationError(f"{name} is given neither in {path} nor on the command line")
    return argparse.Namespace(**values)


def save_config(arguments: argparse.Namespace, result: Path) -> Path:
    """Write the resolved options to ``RESULT.config.yaml``; from there they give it again."""
    values = {
        name: _plain(value)
        for name, value in sorted(vars(arguments).items())
        if name not in _NOT_KEPT and is_set(value)
    }
    path = beside(result, "config.yaml")
    with atomic_file(path) as file:
        file.write(yaml.safe_dump(values, sort_keys=True, allow_unicode=True).encode())
    return path


def beside(result: Path, ending: str) -> Path:
    """``RESULT.ending``."""
    return result.with_name(f"{result.name}.{ending}")


def is_set(value: object) -> bool:
    """Whether an option says something; a number 0 does."""
    return not (value is None or value is False or value == [])


def _set(namespace: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(namespace).items() if is_set(value)}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


class _File:
    """Options of one verb in a YAML file, read by the parser of the verb."""

    def __init__(self, path: Path, verb: str, parser: argparse.ArgumentParser) -> None:
        self._path, self._verb, self._parser = path, verb, parser

    def parse(self) -> argparse.Namespace:
        """The options that the file sets, typed as on the command line."""
        values = self._read()
        written_for = values.pop("verb", self._verb)
        if written_for != self._verb:
            self._refuse(f"it is a configuration of qvla {written_for}")
        actions = _destinations(self._parser)
        for name in values:
            if name not in actions or name == "config":
                near = difflib.get_close_matches(str(name), actions, 1, cutoff=0.0)
                self._refuse(f"unknown option {name!r}; the nearest is {near[0]!r}")
        words: list[str] = []
        places: list[str] = []
        for name, action in actions.items():
            if values.get(name) is None:
                continue
            if action.option_strings:
                words += self._option(action, values[name])
            else:
                places += map(str, _as_list(values[name]))
        # What the parser finds wrong is wrong in the file.
        self._parser.error = self._refuse  # type: ignore[method-assign]
        try:
            return self._parser.parse_intermixed_args([*places, *words])
        finally:
            del self._parser.error

    def _read(self) -> dict[str, object]:
        try:
            values = yaml.safe_load(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{self._path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            self._refuse("it must hold options by name")
        return dict(values)

    def _option(self, action: argparse.Action, value: object) -> list[str]:
        name = action.option_strings[-1]
        if action.nargs == 0:
            if not isinstance(value, bool):
                self._refuse(f"{action.dest} must be true or false, not {value!r}")
            return [name] if value else []
        if isinstance(value, bool | Mapping):
            self._refuse(f"{action.dest} cannot be {value!r}")
        several = [str(one) for one in _as_list(value)]
        if isinstance(action, argparse._AppendAction):
            return [word for one in several for word in (name, one)]
        if action.nargs is not None:
            return [name, *several]
        return [name, ",".join(several)]

    def _refuse(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self._path}: {message}")


def _destinations(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _let_everything_be_absent(parser: argparse.ArgumentParser) -> None:
    """What is not given shall be ``None``, so that one source can be laid over another."""
    for action in _destinations(parser).values():
        action.required = False
        action.default = None
        if not action.option_strings:
            action.nargs = "*" if action.nargs == "+" else "?"


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
