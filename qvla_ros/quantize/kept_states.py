"""What stages have read, kept for later: in memory up to a limit, beyond it in files."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save_file

from qvla_ros.models.stages import State
from qvla_ros.quantize.journal import STATES

MEMORY_BYTES = 2 << 30
"""Of states that stay in memory; a frame takes 0.4 GB in a 7B network."""


class KeptStates:
    """A store of states; it and its files go when nobody holds it any more."""

    def __init__(self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        """Keep files in a folder of their own below ``folder``, or where temporary files are."""
        self._parent = folder
        self._room = memory_bytes
        self._files = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def keep(self, state: State) -> Callable[[], State]:
        """Keep a state; calling the answer gives it back."""
        size = sum(tensor.nbytes for tensor in state.values())
        if size <= self._room:
            self._room -= size
            return lambda: state
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=STATES, dir=self._parent)
        path = Path(self._folder.name) / f"{self._files}.safetensors"
        self._files += 1
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return lambda: load(path.read_bytes())
