"""What there is of memory: of this process, of the machine, and on the accelerator."""

from pathlib import Path

import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.cuda_device import resolve_device

_PROCESS_FIELDS = {"VmRSS": "process_resident", "VmHWM": "process_peak", "VmSwap": "process_swap"}
_MACHINE_FIELDS = {
    "MemAvailable": "machine_available",
    "MemTotal": "machine_total",
    "SwapFree": "machine_swap_free",
}
_CGROUP = Path("/sys/fs/cgroup")

LOADED_PER_FILE_BYTE = 1.25
"""Estimate of the memory that a checkpoint takes while it is loaded, for each byte of its file."""

WORKING_BYTES = 64_000_000
"""Estimate of what inference takes beside the weights; a checkpoint of 24 MB was measured to take
41 MB loaded and 60 MB after its first inference."""


def process_memory(proc: Path = Path("/proc"), cgroup: Path = _CGROUP) -> dict[str, int]:
    """Bytes of memory of this process and of the machine, by name.

    Keys: ``process_resident``, ``process_peak`` (high-water mark of resident memory),
    ``process_swap``, ``machine_available`` (less where a container may use less),
    ``machine_total``, ``machine_swap_free``; ``cuda_reserved`` and ``cuda_free`` where CUDA is in
    use. What the system does not tell is absent. Where the accelerator shares the machine's
    memory, as on a Jetson, ``machine_available`` counts for both.

    Args:
        proc: Where the proc file system is mounted.
        cgroup: Where the control group of this process is found.
    """
    memory = {
        **_read_fields(proc / "self" / "status", _PROCESS_FIELDS),
        **_read_fields(proc / "meminfo", _MACHINE_FIELDS),
        **_cuda_memory(),
    }
    left = _left_in_container(cgroup)
    if left is not None and "machine_available" in memory:
        memory["machine_available"] = min(left, memory["machine_available"])
    return memory


def require_memory(
    path: Path, reserve_bytes: int, memory: dict[str, int] | None = None, device: str = "cpu"
) -> None:
    """Refuse a checkpoint that would not leave ``reserve_bytes`` of the machine's memory.

    Args:
        path: The checkpoint; a missing file is left to who reads it.
        reserve_bytes: What must be left.
        memory: As ``process_memory`` answers; ``None`` to ask it.
        device: Where it is to run: ``"auto"``, ``"cpu"`` or ``"cuda"``. A GPU with a memory of its
            own must have room too; nothing needs to be left there.

    Raises:
        ConfigurationError: It does not fit, and the message tells the figures; or there is no such
            device.
    """
    if not path.is_file():
        return
    needed = round(path.stat().st_size * LOADED_PER_FILE_BYTE) + WORKING_BYTES
    memory = process_memory() if memory is None else memory
    available = memory.get("machine_available")
    if available is not None and needed + reserve_bytes > available:
        raise ConfigurationError(
            f"{path} needs {needed / 1e6:.0f} MB and {reserve_bytes / 1e6:.0f} MB are to be left, "
            f"but {available / 1e6:.0f} MB are available: end other programs, choose a smaller "
            "checkpoint, or lower the parameter memory_reserve_mb"
        )
    free = _free_on_gpu(device)
    if free is not None and needed > free:
        raise ConfigurationError(
            f"{path} needs {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free on the GPU: end "
            "other programs on it, choose a smaller checkpoint, or set the parameter device to cpu"
        )


def _free_on_gpu(device: str) -> int | None:
    """Bytes left of a GPU's own memory; ``None`` if another device is meant, or it has none."""
    place = resolve_device(device)
    if place.type != "cuda" or torch.cuda.get_device_properties(place).is_integrated:
        return None
    return torch.cuda.mem_get_info(place)[0]


def _cuda_memory() -> dict[str, int]:
    if not torch.cuda.is_initialized():  # asking would make a context, which costs memory itself
        return {}
    return {
        "cuda_reserved": torch.cuda.memory_reserved(),
        "cuda_free": torch.cuda.mem_get_info()[0],
    }


def _left_in_container(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - used + _reclaimable(cgroup))


def _reclaimable(cgroup: Path) -> int:
    """Pages of files that nobody has read for a while: counted as used, and given back at need."""
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(maxsplit=1) for line in lines if " " in line)
    pages = stat.get("inactive_file", "")
    return int(pages) if pages.isdigit() else 0


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
