"""Every test that the documentation names is there, and every row of its tables has one."""

import ast
from pathlib import Path

import pytest

from demo.node_evidence.fault_table import DOCUMENT, TESTS, rows_and_tests

ROWS = rows_and_tests(DOCUMENT.read_text())


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("event", ROWS)
def test_a_row_is_held_by_tests_that_exist(event: str) -> None:
    assert ROWS[event] != []
    for file, function in ROWS[event]:
        assert function in functions_of(TESTS / f"{file}.py"), f"{file}::{function}"


def test_all_tables_are_found() -> None:
    assert len(ROWS) >= 30
