from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.policy import memory
from qvla_ros.policy.memory import process_memory, require_memory


def write_proc(folder: Path, status: str, meminfo: str) -> Path:
    (folder / "self").mkdir()
    (folder / "self" / "status").write_text(status)
    (folder / "meminfo").write_text(meminfo)
    return folder


MEMINFO = "MemTotal:  4096 kB\nMemAvailable:   3072 kB\nSwapFree: 512 kB\n"


def test_the_kernels_kibibytes_become_bytes(tmp_path):
    proc = write_proc(tmp_path, "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n", MEMINFO)
    assert process_memory(proc, tmp_path / "none") == {
        "process_resident": 1024 * 1024,
        "process_peak": 2048 * 1024,
        "machine_available": 3072 * 1024,
        "machine_total": 4096 * 1024,
        "machine_swap_free": 512 * 1024,
    }


def test_where_there_is_no_proc_the_answer_is_empty(tmp_path):
    assert process_memory(tmp_path, tmp_path) == {}


def test_lines_that_are_not_understood_are_left_out(tmp_path):
    proc = write_proc(tmp_path, "VmRSS: many kB\nVmHWM: 12\n", "")
    assert process_memory(proc, tmp_path) == {}


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [("2097152", "1048576", 1024**2), ("1048576", "9999999", 0), ("max", "1", 3072 * 1024)],
)
def test_a_container_may_have_less_than_the_machine(tmp_path, limit, used, available):
    proc = write_proc(tmp_path, "", MEMINFO)
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    assert process_memory(proc, tmp_path)["machine_available"] == available


@pytest.mark.parametrize(
    ("stat", "available"),
    [("anon 5\ninactive_file 524288\nactive_file 9\n", 1024**2 + 512 * 1024), ("odd", 1024**2)],
)
def test_cached_files_can_be_had_back(tmp_path, stat, available):
    """A container that had read its checkpoint once refused to be configured again: the pages of
    the file, which the kernel gives back at need, were counted as used."""
    proc = write_proc(tmp_path, "", MEMINFO)
    (tmp_path / "memory.max").write_text("2097152\n")
    (tmp_path / "memory.current").write_text("1048576\n")
    (tmp_path / "memory.stat").write_text(stat)
    assert process_memory(proc, tmp_path)["machine_available"] == available


@pytest.mark.parametrize(("integrated", "refused"), [(False, True), (True, False)])
def test_a_gpu_with_memory_of_its_own_must_have_room(tmp_path, monkeypatch, integrated, refused):
    path = tmp_path / "big.qvla.safetensors"
    path.write_bytes(bytes(10_000_000))
    monkeypatch.setattr(memory, "resolve_device", lambda _: torch.device("cuda"))
    properties = SimpleNamespace(is_integrated=integrated)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (76_000_000, 10**9))
    expected = pytest.raises(ConfigurationError, match=r"76 MB are free on the GPU")
    with expected if refused else nullcontext():
        require_memory(path, 5_000_000, {"machine_available": 90_000_000}, "cuda")


def test_a_checkpoint_must_leave_the_reserve(tmp_path):
    path = tmp_path / "big.qvla.safetensors"
    path.write_bytes(bytes(10_000_000))
    require_memory(path, 5_000_000, {"machine_available": 90_000_000})
    with pytest.raises(ConfigurationError, match=r"big.*to be left, but 81 MB are available"):
        require_memory(path, 5_000_000, {"machine_available": 81_000_000})


def test_what_cannot_be_known_is_no_reason_to_refuse(tmp_path):
    require_memory(tmp_path / "absent", 10**15, {"machine_available": 1})
    require_memory(Path(__file__), 10**15, {})
