"""What the kernel says about memory: this process and the machine."""

from pathlib import Path

_PROCESS_FIELDS = {"VmRSS": "process_resident", "VmHWM": "process_peak", "VmSwap": "process_swap"}
_MACHINE_FIELDS = {"MemAvailable": "machine_available", "MemTotal": "machine_total"}


def process_memory(proc: Path = Path("/proc")) -> dict[str, int]:
    """Bytes of memory of this process and of the machine, by name.

    Keys: ``process_resident``, ``process_peak`` (high-water mark of resident memory),
    ``process_swap``, ``machine_available``, ``machine_total``. What the system does not tell is
    absent; where there is no ``/proc`` the answer is empty.

    Args:
        proc: Where the proc file system is mounted.
    """
    return {
        **_read_fields(proc / "self" / "status", _PROCESS_FIELDS),
        **_read_fields(proc / "meminfo", _MACHINE_FIELDS),
    }


def _read_fields(path: Path, names: dict[str, str]) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, int] = {}
    for line in lines:
        field, _, value = line.partition(":")
        words = value.split()
        # The kernel prints kB here and means KiB.
        if field in names and len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            found[names[field]] = int(words[0]) * 1024
    return found
