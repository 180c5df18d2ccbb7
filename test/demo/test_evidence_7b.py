"""The claims about 7B models, and what breaks them."""

import copy
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from demo.evidence_7b import INSPECTED, PARTS, faults, measure, table_text
from demo.seven_b_width import Missing
from qvla_ros.models.linear_layer import LinearLayer

GOOD = {
    "oracles": {"tests": 10, "passed": 10, "failed": 0, "skipped": 0},
    "inspect": dict(INSPECTED),
    "inspect_seconds": 4.0,
    "inspect_peak_mb": 300.0,
    "full_width_peak_gb": 6.0,
    "full_width_peaks_gb": {"measure": 6.0, "plan": 1.0, "quantize": 5.0, "verify": 3.0},
    "full_width_seconds": {"measure": 60.0, "plan": 1.0, "quantize": 50.0, "verify": 9.0},
    "full_width_llama_layers": 2,
    "full_width_frames": 1,
    "full_width_probes": 3,
    "extrapolated_32_layers_gb": {"measure": 6.3, "quantize": 8.2},
    "families_action_error": {"openvla": 0.1, "openvla_oft": 0.2},
    "packed_ratio": 0.27,
    "load_peak_over_file": 1.1,
    "whole_quantize": {"share_of_bf16": 0.27, "seconds": 60.0, "peak_gb": 8.0},
    "errors_checked": {"truncated shard": {"refused": True, "nothing_written": True}},
    "seconds": {"errors": 1},
}

BROKEN = {
    "the quantized whole is large": (("whole_quantize", "share_of_bf16"), 0.3, "0.3 of its BF16"),
    "an oracle fails": (("oracles", "failed"), 1, "oracles fail"),
    "an oracle is skipped": (("oracles", "skipped"), 1, "1 oracles skipped"),
    "no oracle is run": (("oracles", "passed"), 0, "no oracle passed"),
    "a parameter is missing": (("inspect", "parameters"), 7_541_237_183, "parameters"),
    "a part has another size": (("inspect", "parameters_by_part", "projector"), 1, "projector"),
    "a tensor is unknown": (("inspect", "unknown"), ["lora"], "unknown"),
    "a family answers nothing": (
        ("families_action_error", "openvla"),
        float("nan"),
        "the family openvla is nan",
    ),
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


def test_the_table_says_on_what_the_memory_was_measured():
    text = table_text(GOOD)
    assert "2 Llama layers, 1 frame(s), 3 probe(s)" in text
    assert "50 s, 5.00 GB, 8.2 GB for 32 layers (extrapolated)" in text


def test_a_part_that_fails_in_an_unforeseen_way_leaves_the_others_their_figures(monkeypatch):
    def broken(place):
        raise ElementTree.ParseError("no element found")

    parts = {"a": broken, "b": lambda place: {"kept": 1}, "c": lambda place: [][0]}
    monkeypatch.setattr("demo.evidence_7b.PARTS", PARTS | parts)
    found, failed = measure(SimpleNamespace(work="work"), ["a", "b", "c"])
    assert found["kept"] == 1
    assert [one.split(":")[0] for one in failed] == ["a", "c"]


def test_all_layers_take_what_was_measured_and_the_missing_ones():
    stages = {"vision_backbone.x": 5.0, "projector": 1.0}
    stages |= {f"language_model.model.layers.{index}": 10.0 for index in range(2)}
    parts = Missing(layers=30, growth=4.0).seconds(30.0, stages)
    assert parts == {
        "llama_layer": 10.0,
        "vision_towers": 5.0,
        "rest": 5.0,
        "extrapolated_32_layers": 5.0 + 320.0 + 4 * 5.0,
    }


def test_a_layer_keeps_the_rows_of_the_first_block_only():
    layers = [LinearLayer(f"language_model.model.layers.{i}.x", 2, 4, "language") for i in (0, 1)]
    table = SimpleNamespace(
        layers=layers,
        scores={one.name: torch.zeros(2, 5, dtype=torch.float64) for one in layers},
        token_weights={one.name: torch.zeros(3) for one in layers},
    )
    assert Missing(30, 1.0).measured_bytes(table) == 2 * 5 * 8 + 3 * 4 + 4 * 3 * 4
    packed = [SimpleNamespace(name=one.name, nbytes=7) for one in layers]
    assert Missing(30, 1.0).packed_bytes(packed) == 7


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
