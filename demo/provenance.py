"""Where, when and of which commit a figure was measured: what every evidence file begins with."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from qvla_ros.atomic_file import atomic_file
from qvla_ros.evaluate.machine import describe_machine, package_version

ROOT = Path(__file__).parents[1]


def evidence_file(name: str, quick: bool) -> Path:
    """Where figures go by default: what is kept, or, if they mean nothing, what is ignored."""
    return ROOT / ("demo_output/quick" if quick else "evidence") / name


def write_evidence(path: Path, found: Mapping[str, object], allow_nan: bool = True) -> None:
    """Write figures as JSON, completely or not at all; the folder is made if it is missing.

    Args:
        path: The file.
        found: The figures.
        allow_nan: Whether a figure may be no number: what took an hour to measure is kept anyway.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(f"{json.dumps(found, indent=2, allow_nan=allow_nan)}\n".encode())


def provenance(packages: Sequence[str]) -> dict[str, object]:
    """Machine, load before the measurement, date, commit, and versions of these packages."""
    return {
        "machine": describe_machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: package_version(name) for name in packages},
    }


def commit() -> str:
    """The commit that is measured, with a plus if files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40"]
    answer = subprocess.run([*words, "--exclude=*", "--dirty=+"], capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"
