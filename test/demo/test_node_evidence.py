"""The evidence of the node goes on when a part of it fails, and says so."""

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="the evidence is measured with ROS 2")

from std_srvs.srv import Trigger
from tiny_model import tiny_checkpoint

from demo.node_evidence import __main__ as evidence
from demo.node_evidence.colcon_run import TESTS, counted
from demo.node_evidence.fault_table import DOCUMENT, outcomes_of, rows_and_tests
from demo.node_evidence.figures import broken_promises, merged, table_text
from demo.node_evidence.processes import ROOT
from demo.node_evidence.sensor_node import SensorNode
from qvla_ros.errors import ConfigurationError

REFUSED = {"non_finite": 9, "out_of_limits": 9}
STRATEGIES = ("latest_only", "blend", "ensemble")


def soak(faults: int, chunks: int) -> dict[str, object]:
    return {
        "faults": {"drop": faults}, "unsafe": {}, "chunks": 3 * chunks, "memory_growth_mb": 0.5,
        "chunks_by_strategy": dict.fromkeys(STRATEGIES, chunks),
        "refused_by_strategy": dict.fromkeys(STRATEGIES, REFUSED),
    }  # fmt: skip


PARTS = {
    "overhead": {"overhead_ms_p99": 1.5, "overhead_chunks": 100, "overhead_frames": 100},
    "simulated": soak(90_000, 4000),
    "over_dds": soak(20_000, 400),
    "lifecycle": {"lifecycle_cycles": 5, "lifecycle_cycles_asked": 5, "memory_growth_mb": 0.2},
    "parity": {
        "parity_mismatches": 0, "clean_trips": {}, "clean_samples": 1000,
        "parity_chunks_by_strategy": {"latest_only": 20, "blend": 20},
        "parity_judged_by_strategy": {"latest_only": 20, "blend": 19},
    },
}  # fmt: skip


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
        (
            "over_dds",
            {"chunks_by_strategy": {"blend": 0}},
            "over_dds, blend: fewer than 150 chunks",
        ),
        ("simulated", {"chunks_by_strategy": {"blend": 1999}}, "fewer than 2,000 chunks"),
        (
            "over_dds",
            {"refused_by_strategy": {"blend": {**REFUSED, "out_of_limits": 0}}},
            "over_dds, blend: no chunk was out_of_limits",
        ),
        (
            "parity",
            {"parity_judged_by_strategy": {"blend": 18}},
            "judged 18 of 20 chunks of blend",
        ),
        ("parity", {"clean_samples": 3}, "fewer than 500 samples of clean recordings"),
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
    def run_part(name, options, folder, left_s):
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


@pytest.mark.parametrize("words", [["--quick"], ["--only", "overhead"]])
def test_a_part_of_the_evidence_does_not_take_its_place(monkeypatch, capsys, words):
    """A run of one part once replaced the whole file, and its exit status was 0."""
    monkeypatch.setattr(evidence, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["node_evidence", *words])
    with pytest.raises(SystemExit, match="2"):
        evidence.main()
    assert "name another file with --out" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["node_evidence", "--out", str(evidence.EVIDENCE), *words])
    with pytest.raises(SystemExit, match="2"):
        evidence.main()


def test_what_is_not_measured_when_the_time_is_up_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "LIMIT_S", 0)
    monkeypatch.setattr(evidence, "_run", lambda *_: pytest.fail("it was begun"))
    checkpoint = tiny_checkpoint(tmp_path)
    options = argparse.Namespace(checkpoint=checkpoint, only=["overhead", "parity"], quick=False)
    figures, faults, _ = evidence.measure(options, tmp_path)
    assert figures == {}
    assert [text.partition(":")[0] for text in faults] == ["overhead", "parity"]


def test_a_node_that_refuses_to_start_ends_the_measurement(monkeypatch):
    """Its silence passed for safety: no chunk was sent, and so none that was unsafe."""
    refusal = Trigger.Response(success=False, message="the checkpoint is corrupt")
    monkeypatch.setattr(SensorNode, "call", lambda *_: refusal)
    with pytest.raises(ConfigurationError, match="does not start: the checkpoint is corrupt"):
        SensorNode.start_the_policy_node(object.__new__(SensorNode))


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
    report.rename(results / "test_a.xunit.xml")
    with pytest.raises(ValueError, match="no results of test_b"):
        counted(tmp_path / "build", ["test_a", "test_b"])
    assert counted(tmp_path / "build", ["test_a"]) == {
        "colcon_tests": 3,
        "colcon_tests_failed": 1,
        "colcon_failures": ["test_x[2]: "],
    }
    table = "<!-- tests: faults -->\n| event | test |\n|---|---|\n| e | `test_a::test_x` |\n\nmore"
    assert rows_and_tests(table) == {"e": [("test_a", "test_x")]}


def test_colcon_test_runs_every_file_that_the_fault_table_names():
    """It ran three of them: the rows themselves, launch and adapter were not among those."""
    told = (ROOT / "CMakeLists.txt").read_text()
    words = set(re.findall(r"\w+", told[told.index("if(BUILD_TESTING)") :]))
    registered = {word if word.startswith("test_") else f"test_{word}" for word in words}
    named = {file for tests in rows_and_tests(DOCUMENT.read_text()).values() for file, _ in tests}
    assert named | set(TESTS) <= registered
