"""Finished parts of a long computation, kept so that it can go on after an interruption.

Each part is a file, written completely or not at all. The journal knows what it was begun for: a
changed model, calibration set or setting is refused, because parts of two computations do not fit
together.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError

STATES = "states-"
"""How the names of folders begin that a run spills to and the next one has no use for."""

_PURPOSE = "purpose.json"


class Journal:
    """A folder of finished parts."""

    def __init__(
        self, folder: Path, purpose: Mapping[str, str | int | float], interval_s: float = 30.0
    ) -> None:
        """Begin, or go on.

        Args:
            folder: Made if it does not exist.
            purpose: What the parts depend on: fingerprints, settings, seed.
            interval_s: Seconds between two records of parts that grow as long as they are made.

        Raises:
            ConfigurationError: The folder was begun for something else (names what differs), or
                holds other things than a journal, or cannot be written to.
        """
        self.folder = folder
        self.interval_s = interval_s
        try:
            self._open(dict(purpose))
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be worked in: {error}") from error

    def _open(self, wanted: dict[str, str | int | float]) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / _PURPOSE
        if file.exists():
            self._require_same(_read_purpose(file), wanted)
            for stale in folder.glob(f"{STATES}*"):  # of a run that was killed
                shutil.rmtree(stale)
        elif any(one.suffix != ".partial" for one in folder.iterdir()):
            raise ConfigurationError(
                f"{folder} is neither empty nor a work folder: name another one with --work"
            )
        else:
            with atomic_file(file) as target:
                target.write(json.dumps(wanted, indent=2, sort_keys=True).encode())

    def _require_same(
        self, begun: dict[str, object], wanted: dict[str, str | int | float]
    ) -> None:
        differing = [
            f"{key}: {begun.get(key)} then, {wanted.get(key)} now"
            for key in sorted(begun.keys() | wanted.keys())
            if begun.get(key) != wanted.get(key)
        ]
        if differing:
            raise ConfigurationError(
                f"{self.folder} holds unfinished work for something else ({'; '.join(differing)}): "
                "give the same inputs to go on, or remove the folder to start anew"
            )

    def load(self, part: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part; ``None`` if it is not finished.

        Raises:
            ConfigurationError: The file is damaged.
        """
        path = self._path(part)
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error}; remove it, and the part is computed again"
            ) from error

    def save(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished part; an older one of the same name is replaced."""
        with atomic_file(self._path(part)) as file:
            file.write(save({name: value.contiguous() for name, value in tensors.items()}))

    def clear(self) -> None:
        """Remove all parts."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"


def _read_purpose(file: Path) -> dict[str, object]:
    try:
        begun = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}; remove the folder to start anew"
        ) from error
    if not isinstance(begun, dict):
        raise ConfigurationError(f"{file} holds no object; remove the folder to start anew")
    return begun
