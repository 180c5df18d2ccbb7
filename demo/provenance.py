"""Where, when and of which commit a figure was measured: what every evidence file begins with."""

import os
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from qvla_ros.evaluate.machine import describe_machine

ROOT = Path(__file__).parents[1]


def provenance(packages: Sequence[str]) -> dict[str, object]:
    """Machine, load before the measurement, date, commit, and versions of these packages."""
    return {
        "machine": describe_machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: _version(name) for name in packages},
    }


def commit() -> str:
    """The commit that is measured, with a plus if files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40"]
    answer = subprocess.run([*words, "--exclude=*", "--dirty=+"], capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
