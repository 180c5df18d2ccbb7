"""The README's tables are what the evidence files say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def evidence(name: str) -> dict:
    """What one of the evidence files holds."""
    return json.loads((ROOT / "evidence" / name).read_text(encoding="utf-8"))


EVIDENCE = evidence("method.json")
EVIDENCE_FILES = ["runtime.json", "7b.json", "node.json", "closed-loop.json"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_after(heading: str) -> list[list[str]]:
    """The rows of the first table whose head begins with ``heading``, head first."""
    lines = README.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


METHODS = table_after("action error at equal bytes")


@pytest.mark.parametrize("row", METHODS[1:], ids=lambda row: row[0])
def test_a_method_has_the_errors_that_were_measured(row):
    cells = EVIDENCE["heldout_error"][re.search(r"`(.+)`", row[0]).group(1)]
    for bits, told in zip(METHODS[0][1:], row[1:], strict=True):
        cell = cells.get(bits.removesuffix(" bits"))
        if cell is None or cell["error"] is None:
            assert told == ""
        else:
            assert told == f"{cell['error']['mean']:.4f}"


def test_every_rival_and_ours_are_in_the_table():
    told = {re.search(r"`(.+)`", row[0]).group(1) for row in METHODS[1:]}
    assert told >= {name for name in EVIDENCE["heldout_error"] if not name.startswith("ours-")} - {
        "bf16"
    }


def test_the_rank_correlations_are_those_measured():
    for bits, scores in EVIDENCE["spearman_by_width"].items():
        row = next(row for row in table_after("rank correlation") if row[0] == f"{bits} bits")
        assert row[1:] == [f"{scores[name]:.3f}" for name in ("ours", "norm-product", "qvla-code")]


def test_the_speeds_of_kernels_are_those_measured():
    found = evidence("runtime.json")
    head, *rows = table_after("speed over bf16")
    for row in rows:
        name = re.search(r"`(.+)`", row[0]).group(1)
        for tokens, told in zip(head[1:], row[1:], strict=True):
            assert told == f"{found[f'cpu_{name}_ratio_m{tokens.split()[0]}']:.2f}"


def test_the_successes_are_those_counted():
    cells = {(one["method"], one["bits"]): one for one in evidence("closed-loop.json")["cells"]}
    head, *rows = table_after("success at equal bytes")
    told = {
        (re.search(r"`(.+)`", row[0]).group(1), float(bits.removesuffix(" bits"))): text
        for row in rows
        for bits, text in zip(head[1:], row[1:], strict=True)
        if text
    }
    assert told == {key: f"{one['successes']} of {one['n']}" for key, one in cells.items()}


@pytest.mark.parametrize("name", EVIDENCE_FILES)
def test_a_figure_is_the_one_that_was_measured_to_the_digits_that_are_told(name):
    found = evidence(name)
    rows = table_after(f"figure of `{name}`")[1:]
    for what, told in rows:
        value = found
        for part in re.findall(r"`([^`]+)`", what)[-1].split("."):
            value = value[part]
        digits = len(told.partition(".")[2])
        assert told == f"{value:,.{digits}f}", what
    assert rows


@pytest.mark.parametrize("name", EVIDENCE_FILES)
def test_a_table_tells_the_day_of_its_measurement(name):
    found = evidence(name)
    make = f"`make evidence-{name.removesuffix('.json')}`, "
    assert README.split(make)[1].startswith(found["date"][:10])
    assert not found.get("quick")
    assert found.get("share_of_the_work", 1.0) == 1.0
