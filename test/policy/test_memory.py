from pathlib import Path

from qvla_ros.policy.memory import process_memory


def write_proc(folder: Path, status: str, meminfo: str) -> Path:
    (folder / "self").mkdir()
    (folder / "self" / "status").write_text(status)
    (folder / "meminfo").write_text(meminfo)
    return folder


def test_the_kernels_kibibytes_become_bytes(tmp_path):
    proc = write_proc(
        tmp_path,
        "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n",
        "MemTotal:  4096 kB\nMemAvailable:   3072 kB\n",
    )
    assert process_memory(proc) == {
        "process_resident": 1024 * 1024,
        "process_peak": 2048 * 1024,
        "machine_available": 3072 * 1024,
        "machine_total": 4096 * 1024,
    }


def test_where_there_is_no_proc_the_answer_is_empty(tmp_path):
    assert process_memory(tmp_path) == {}


def test_lines_that_are_not_understood_are_left_out(tmp_path):
    proc = write_proc(tmp_path, "VmRSS: many kB\nVmHWM: 12\n", "")
    assert process_memory(proc) == {}
