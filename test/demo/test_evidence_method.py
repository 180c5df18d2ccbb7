"""The verdict of ``make evidence-method`` and its check of the allocator."""

import copy

import pytest

from demo import method_checks
from demo.evidence_method import faults

GOOD = {
    "spearman_by_width": {"4": {"ours": 0.97, "norm-product": 0.9, "qvla-code": 0.2}},
    "same_seed_identical": True,
    "resume_identical": True,
    "changed_calibration_refused": True,
    "allocator_vs_bruteforce_mismatches": {"cases": 9, "mismatches": 0, "worse_than_greedy": 0},
    "a8_over_a16_error": {"4": 1.1},
    "heldout_error": {
        "rtn": {"4": {"ours_is_better": True}, "8": {"ours_is_better": False}},
        "ours-greedy": {"4": {"ours_is_better": False}},
        "ours": {"4": {"ours_is_better": None}},
    },
}


def test_good_figures_have_no_fault():
    """Not being better at 8 bits, or than an ablation of ours, is none."""
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spearman_by_width", "4", "ours"), 0.89, "Spearman"),
        (("spearman_by_width", "4", "norm-product"), 0.98, "Spearman"),
        (("same_seed_identical",), False, "same_seed_identical"),
        (("resume_identical",), False, "resume_identical"),
        (("changed_calibration_refused",), False, "changed_calibration_refused"),
        (("allocator_vs_bruteforce_mismatches", "mismatches"), 1, "optimum"),
        (("allocator_vs_bruteforce_mismatches", "worse_than_greedy"), 1, "greedy"),
        (("a8_over_a16_error", "4"), 1.3, "A8"),
        (("heldout_error", "rtn", "4", "ours_is_better"), False, "rtn"),
    ],
)
def test_every_claim_that_is_not_borne_is_told(path, value, said):
    found = copy.deepcopy(GOOD)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (fault,) = faults(found)
    assert said in fault


def test_the_check_of_the_allocator_would_see_a_missed_optimum(monkeypatch):
    monkeypatch.setattr(method_checks, "_CASES", 40)
    found = method_checks.allocator_against_brute_force(0)["allocator_vs_bruteforce_mismatches"]
    assert found == {"cases": 40, "mismatches": 0, "worse_than_greedy": 0}
    monkeypatch.setattr(method_checks, "_brute_force", lambda scores, cost, limit: -1.0)
    missed = method_checks.allocator_against_brute_force(0)["allocator_vs_bruteforce_mismatches"]
    assert missed["mismatches"] == 40
