"""On what machine a figure was measured."""

import os
import platform
from importlib import metadata
from pathlib import Path


def describe_machine(root: Path = Path("/")) -> dict[str, str]:
    """What a measurement must be read with: processor, cores, clock policy, versions.

    What the system does not tell is ``"unknown"``, never guessed.

    Args:
        root: Where ``proc`` and ``sys`` are found.
    """
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return {
        "processor": _processor(root / "proc/cpuinfo"),
        "cores": str(_usable_cores()),
        "governor": _first_line(governor),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "numpy": package_version("numpy"),
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor(path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return "unknown"


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def package_version(name: str) -> str:
    """The installed version of a package, or ``"not installed"``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
