"""Runs the tests of the node over DDS, and tells them by the rows of the documentation's table."""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from demo.node_evidence.processes import ROOT

DOCUMENT = ROOT / "docs" / "ros-interface.md"
TESTS = ROOT / "test" / "node"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MARK = "<!-- tests: faults -->"
_NAME = re.compile(r"`(test_\w+)::(test_\w+)`")


def rows_and_tests(text: str) -> dict[str, list[tuple[str, str]]]:
    """Event to the files and functions of its tests, of every marked table of the documentation.

    Args:
        text: Of the document.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for table in text.split(MARK)[1:]:
        for line in table.strip().split("\n\n")[0].splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[cells[0]] = _NAME.findall(cells[-1])
    return found


def run_fault_table() -> dict[str, object]:
    """Run ``test/node``, and judge each row by its own tests: passed, all of them."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "tests.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)  # failures are in the report
        outcomes = outcomes_of(report)
    rows = {
        event: bool(tests) and all(set(outcomes.get(test, ())) == {PASSED} for test in tests)
        for event, tests in rows_and_tests(DOCUMENT.read_text()).items()
    }
    by_kind = {
        kind: [f"{file}::{test}" for (file, test), found in outcomes.items() if kind in found]
        for kind in (FAILED, SKIPPED)
    }
    return {
        "fault_table": rows,
        "fault_table_rows": len(rows),
        "fault_table_failed": [event for event, passed in rows.items() if not passed],
        "node_tests": sum(map(len, outcomes.values())),
        "node_tests_failed": by_kind[FAILED],
        "node_tests_skipped": by_kind[SKIPPED],
    }


def outcomes_of(report: Path) -> dict[tuple[str, str], list[str]]:
    """File and function to what became of each of its cases: passed, failed or skipped."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        function = case.get("name", "").partition("[")[0]
        outcome = PASSED if case.find("skipped") is None else SKIPPED
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            outcome = FAILED
        outcomes.setdefault((file, function), []).append(outcome)
    return outcomes
