"""The evidence of the node goes on when a part of it fails, and says so."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="the evidence is measured with ROS 2")

from tiny_model import tiny_checkpoint

from demo.node_evidence import __main__ as evidence
from demo.node_evidence.colcon_run import counted
from demo.node_evidence.fault_table import outcomes_of, rows_and_tests
from demo.node_evidence.figures import broken_promises, merged, table_text

PARTS = {
    "overhead": {"overhead_ms_p99": 1.5, "overhead_chunks": 100, "overhead_frames": 100},
    "simulated": {"faults": {"drop": 90_000}, "unsafe": {}, "chunks": 9, "memory_growth_mb": 0.5},
    "over_dds": {"faults": {"drop": 20_000}, "unsafe": {}, "chunks": 8, "memory_growth_mb": 0.1},
    "lifecycle": {"lifecycle_cycles": 5, "lifecycle_cycles_asked": 5, "memory_growth_mb": 0.2},
    "parity": {"parity_mismatches": 0, "clean_trips": {}},
}


def test_good_figures_break_no_promise_and_are_summed_up():
    found = merged(PARTS)
    assert broken_promises(found) == []
    assert (found["faults_injected"], found["unsafe_chunks"]) == (110_000, 0)
    assert found["memory_growth_mb"] == 0.5
    assert "overhead_ms_p99" in table_text(found)


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("overhead", {"overhead_ms_p99": 2.1}, "costs more than 2 ms"),
        ("overhead", {"overhead_chunks": 98}, "99%"),
        ("simulated", {"unsafe": {"stale": 1}}, "unsafe chunk"),
        ("simulated", {"faults": {"drop": 70_000}}, "fewer than 100,000 faults"),
        ("over_dds", {"memory_growth_mb": 9.0}, "memory grew"),
        ("lifecycle", {"lifecycle_cycles": 4}, "lifecycle cycle"),
        ("parity", {"parity_mismatches": 1}, "differs from its replay"),
        ("parity", {"clean_trips": {"out_of_limits": 1}}, "tripped a limit"),
    ],
)
def test_a_figure_that_misses_its_bar_is_told(part, change, told):
    found = merged({**PARTS, part: {**PARTS[part], **change}})
    assert [told in text for text in broken_promises(found)] == [True]


def test_without_a_part_its_figures_are_missing_and_not_zero():
    found = merged({name: one for name, one in PARTS.items() if name != "over_dds"})
    assert "unsafe_chunks" not in found
    assert broken_promises(found) == []


def test_a_command_that_fails_or_takes_too_long_is_told():
    fail = [sys.executable, "-c", "import sys; sys.exit('the disk is gone')"]
    assert evidence._run(fail, 30) == "exit status 1: the disk is gone"
    assert evidence._run([sys.executable, "-c", "import time; time.sleep(60)"], 1) == (
        "took more than 1 s"
    )


def test_a_part_that_fails_is_a_fault_in_the_file_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def run_part(name, options, folder):
        return "exit status 1: no DDS" if name == "over_dds" else PARTS[name]

    monkeypatch.setattr(evidence, "run_part", run_part)
    out = tmp_path / "node.json"
    checkpoint = str(tiny_checkpoint(tmp_path))
    words = ["--out", str(out), "--checkpoint", checkpoint, "--only", *PARTS]
    monkeypatch.setattr(sys, "argv", ["node_evidence", *words])
    assert evidence.main() == 1
    found = json.loads(out.read_text())
    assert found["faults_of_the_evidence"] == ["over_dds: exit status 1: no DDS"]
    assert found["overhead_ms_p99"] == 1.5
    assert "no DDS" in capsys.readouterr().err


def test_results_are_read_by_file_and_function_and_a_skipped_test_has_not_passed(tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite tests='3' failures='1' errors='0'>"
        "<testcase classname='test.node.test_a' name='test_x[1]'/>"
        "<testcase classname='test.node.test_a' name='test_x[2]'><failure/></testcase>"
        "<testcase classname='test.node.test_b' name='test_y'><skipped/></testcase>"
        "</testsuite></testsuites>"
    )
    assert outcomes_of(report) == {
        ("test_a", "test_x"): ["passed", "failed"],
        ("test_b", "test_y"): ["skipped"],
    }
    results = tmp_path / "build" / "p" / "test_results" / "p"
    results.mkdir(parents=True)
    report.rename(results / "t.xml")
    assert counted(tmp_path / "build") == {"colcon_tests": 3, "colcon_tests_failed": 1}
    table = "<!-- tests: faults -->\n| event | test |\n|---|---|\n| e | `test_a::test_x` |\n\nmore"
    assert rows_and_tests(table) == {"e": [("test_a", "test_x")]}
