"""One method at one budget, measured: a cell of the comparison, and its file."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError


@dataclass(frozen=True, slots=True, order=True)
class CellKey:
    """Which cell.

    Attributes:
        method: Its name in the registry.
        bits: Average bits a weight of the plain round-to-nearest that sets the byte budget.
    """

    method: str
    bits: float

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        return f"{self.method}@{self.bits:g}"


@dataclass(frozen=True, slots=True)
class MethodCell:
    """What came out.

    Attributes:
        method: Its name in the registry.
        bits: Of the budget.
        budget_bytes: What the file may take.
        unmet: Why the method has no file of that size; empty if it has one. Then all that follows
            is zero or empty.
        file_bytes: What it takes.
        average_bits_per_weight: Of its codes.
        rows_by_width: Bit width, as text, to rows.
        group_scales: Whether scales are those of groups of columns.
        checkpoint_sha256: Identity of the checkpoint.
        kernels: Names of the kernels that ran.
        mean_l1: Mean absolute action error against the float32 policy, normalised units.
        rms: Root mean square of the same.
        gripper_flips: Gripper decisions that differ from the float32 policy's.
        hidden_error: Root mean square error of the last hidden states, see ``HeldoutAnswers``.
        frame_errors: Mean absolute action error of each held-out frame.
        quantize_seconds: From the shared measurements to codes.
        evaluate_seconds: Of writing, loading and running the checkpoint.
    """

    method: str
    bits: float
    budget_bytes: int
    unmet: str = ""
    file_bytes: int = 0
    average_bits_per_weight: float = 0.0
    rows_by_width: dict[str, int] | None = None
    group_scales: bool = False
    checkpoint_sha256: str = ""
    kernels: tuple[str, ...] = ()
    mean_l1: float = 0.0
    rms: float = 0.0
    gripper_flips: int = 0
    hidden_error: float = 0.0
    frame_errors: tuple[float, ...] = ()
    quantize_seconds: float = 0.0
    evaluate_seconds: float = 0.0

    @property
    def key(self) -> CellKey:
        """Which cell this is."""
        return CellKey(self.method, self.bits)

    def write(self, path: Path) -> None:
        """Write it completely or not at all."""
        with atomic_file(path) as file:
            file.write(f"{json.dumps(asdict(self), sort_keys=True)}\n".encode())


def read_cell(path: Path) -> MethodCell:
    """Read what ``MethodCell.write`` wrote.

    Raises:
        ConfigurationError: The file is damaged or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if set(values) != {each.name for each in fields(MethodCell)}:
            raise ValueError("its fields are not those of a cell")
        tuples = {name: tuple(values[name]) for name in ("kernels", "frame_errors")}
        return MethodCell(**{**values, **tuples})
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}; remove it, and the cell is measured again"
        ) from error
