"""The claims about 7B models, and what breaks them."""

import copy

import pytest

from demo.evidence_7b import faults, table_text

GOOD = {
    "oracles": {"tests": 10, "passed": 9, "failed": 0, "skipped": 1},
    "inspect": {"targets": 430, "live_targets": 422, "dead_tensors": 43},
    "inspect_seconds": 4.0,
    "inspect_peak_mb": 300.0,
    "full_width_peak_gb": 6.0,
    "packed_ratio": 0.27,
    "load_peak_over_file": 1.1,
    "errors_checked": {"truncated shard": {"refused": True, "nothing_written": True}},
    "seconds": {"errors": 1},
}

BROKEN = {
    "an oracle fails": (("oracles", "failed"), 1, "oracles fail"),
    "inspect is slow": (("inspect_seconds",), 11.0, "inspect_seconds"),
    "inspect is large": (("inspect_peak_mb",), 501.0, "inspect_peak_mb"),
    "full width is large": (("full_width_peak_gb",), 8.1, "full_width_peak_gb"),
    "the file is large": (("packed_ratio",), 0.3, "packed_ratio"),
    "loading takes twice": (("load_peak_over_file",), 2.0, "load_peak_over_file"),
    "a figure is not a number": (("packed_ratio",), float("nan"), "packed_ratio"),
    "a target is missing": (("inspect", "targets"), 429, "targets"),
    "a fault passes": (("errors_checked", "truncated shard", "refused"), False, "truncated"),
    "a fault leaves a file": (
        ("errors_checked", "truncated shard", "nothing_written"),
        False,
        "truncated",
    ),
}


def test_good_figures_have_no_fault():
    assert faults(GOOD, True) == []
    assert "oracles passed" in table_text(GOOD)


@pytest.mark.parametrize("case", BROKEN)
def test_a_figure_that_breaks_a_claim_is_a_fault(case):
    path, value, said = BROKEN[case]
    found = copy.deepcopy(GOOD)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (fault,) = faults(found, True)
    assert said in fault


def test_sizes_do_not_count_when_the_models_are_tiny():
    assert faults(GOOD | {"packed_ratio": 0.9, "load_peak_over_file": 30.0}, False) == []
