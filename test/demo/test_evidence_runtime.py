"""The verdict and the table of ``make evidence-runtime``, and how a part that fails is told."""

import argparse
import copy
import json
import subprocess

import pytest

from demo import evidence_runtime, runtime_parts
from demo.evidence_runtime import BARS, faults, measure, table_text
from demo.runtime_parts import PARTS, QUICK, TESTS
from qvla_ros.evaluate.compile_gates import ARCHITECTURES, CompileGate


def gate(architecture: int, spills: int = 0) -> dict:
    return CompileGate(architecture, "gelu", "", "", 40, spills, 0, 0, 0).to_json()


GOOD = {
    **{bar.key: bar.limit for bar in BARS},
    **{name: {"passed": 3, "failed": 0, "skipped": [], "cases": 9} for name in TESTS},
    "compile_gates": {f"sm_{one}": {"gelu": gate(one)} for one in ARCHITECTURES},
    "intervals": {"cpu_a8_ratio_m351": [1.41, 1.62]},
    "broken_parts": [],
    "seconds": {"kernels": 1},
    "gpu": "not measured: there is no CUDA device",
}


def changed(path: tuple, value: object) -> dict:
    found = copy.deepcopy(GOOD)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


def test_figures_at_the_bars_have_no_fault_and_no_gpu_is_none():
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("cpu_a16_ratio_m256",), 0.89, "cpu_a16_ratio_m256 is 0.890, and is to be at least 0.9"),
        (("cpu_a8_ratio_m608",), 1.49, "cpu_a8_ratio_m608"),
        (("resident_weight_ratio",), 0.33, "to be at most 0.32"),
        (("load_peak_over_file",), 1.31, "load_peak_over_file"),
        (("demo_a8_over_bf16_speed",), None, "demo_a8_over_bf16_speed was not measured"),
        (("interpreter_tests", "failed"), 2, "interpreter_tests: 2 failed"),
        (("dequantization_tests", "passed"), 0, "dequantization_tests: none passed"),
        (("compile_gates", "sm_90", "gelu"), gate(90, 2), "sm_90 gelu: 2 instructions spill"),
        (("compile_gates", "sm_110"), {}, "nothing was compiled for sm_110"),
        (("broken_parts",), ["gates could not be measured"], "gates could not be measured"),
        (("gpu",), {"faults": ["a16 is slow"]}, "a16 is slow"),
    ],
)
def test_every_bar_that_is_missed_is_named(path, value, said):
    (fault,) = faults(changed(path, value))
    assert said in fault


def test_why_no_test_ran_is_told():
    found = changed(("interpreter_tests",), {"passed": 0, "failed": 0, "skipped": ["no Triton"]})
    assert faults(found) == ["interpreter_tests: none passed (no Triton)"]


def test_the_table_has_every_bar_with_its_interval_and_says_what_was_not_measured():
    text = table_text(changed(("load_peak_over_file",), None))
    for bar in BARS:
        assert bar.what in text
    assert "1.410 to 1.620" in text
    assert "not measured" in text
    assert "there is no CUDA device" in text


def test_a_part_that_fails_is_a_fault_and_the_others_go_on(tmp_path, monkeypatch):
    def run_part(name: str, _: argparse.Namespace) -> dict:
        if name == "gates":
            raise subprocess.CalledProcessError(1, ["python", "/secret/path"])
        if name == "loading":
            raise subprocess.TimeoutExpired(["python"], 600)
        return {name: 1, "intervals": {f"{name}_ratio": [1, 2]}}

    monkeypatch.setattr(evidence_runtime, "_run_part", run_part)
    found = measure(argparse.Namespace(quick=True, work=tmp_path, threads=None))
    assert found["broken_parts"] == [
        "loading could not be measured: not done after 600 s",
        "gates could not be measured: exit status 1, see above",
    ]
    assert found["kernels"] == found["demo"] == 1
    assert found["intervals"].keys() == {
        f"{p}_ratio" for p in PARTS if p not in ("gates", "loading")
    }
    assert "/secret" not in json.dumps(found)


def test_passes_failures_and_reasons_to_skip_are_counted(tmp_path):
    cases = tmp_path / "test_cases.py"
    cases.write_text(
        "import pytest\n"
        "def test_one(record_property): record_property('cases', 7)\n"
        "def test_two(): assert False\n"
        "def test_three(): pytest.skip('no GPU')\n"
    )
    counts = runtime_parts._test_counts([str(cases)], tmp_path / "report.xml")
    assert counts == {"passed": 1, "failed": 1, "skipped": ["no GPU"], "cases": 7}


def test_every_part_of_the_loading_figures_is_there(tmp_path):
    found = PARTS["loading"](runtime_parts.Effort(1, 1, 0.01, 1, 1), tmp_path)
    assert found["load_file_bytes"] >= 0.01 * 2**30
    assert found["load_peak_over_file"] > 0
    assert list(tmp_path.iterdir()) == []
    assert QUICK.load_gib < 1 <= runtime_parts.FULL.load_gib
