"""Tables, plans and exact measurements survive their files; bad files are refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from qvla_ros.errors import CalibrationError, ConfigurationError, QvlaError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.score_check import RowMeasurement
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.storage import (
    kind_of,
    load_exact,
    load_plan,
    load_table,
    save_exact,
    save_plan,
    save_table,
)
from qvla_ros.quantize.widths import WIDTHS

LAYERS = (LinearLayer("a.b", 3, 4, "vision"), LinearLayer("c", 2, 3, "language"))
WEIGHTS = {"a.b": torch.rand(5), "c": torch.rand(7)}


def table() -> SensitivityTable:
    scores = {one.name: torch.rand(one.rows, len(WIDTHS)).double() for one in LAYERS}
    return SensitivityTable(LAYERS, scores, WEIGHTS, "model", "frames", 8, 3)


def plan(**changes) -> BitPlan:
    rows = {"a.b": torch.tensor([0, 3, 16]).byte(), "c": torch.tensor([2, 8]).byte()}
    values = {
        "predicted_error": 0.5,
        "input_columns": {"c": torch.tensor([0, 2], dtype=torch.int32)},
        "activation_bits": {"a.b": 8},
        "optimality_gap": 0.01,
    } | changes
    budget = BitBudget(max_bytes=1000, max_latency_ms=2.5)
    return BitPlan(
        LAYERS, rows, WEIGHTS, budget, values.pop("predicted_error"), "model", "frames", **values
    )


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        value.equal(second[name]) and value.dtype == second[name].dtype
        for name, value in first.items()
    )


def test_a_table_survives_its_file(tmp_path):
    written = table()
    save_table(written, tmp_path / "t")
    read = load_table(tmp_path / "t")
    assert (read.layers, read.probes, read.seed) == (LAYERS, 8, 3)
    assert (read.model_fingerprint, read.calibration_fingerprint) == ("model", "frames")
    assert same(read.scores, written.scores)
    assert same(read.token_weights, written.token_weights)
    assert kind_of(tmp_path / "t") == "sensitivity"


def test_a_plan_survives_its_file(tmp_path):
    written = plan()
    save_plan(written, tmp_path / "p")
    read = load_plan(tmp_path / "p")
    assert read.budget == written.budget
    assert (read.predicted_error, read.optimality_gap) == (0.5, 0.01)
    assert read.activation_bits == {"a.b": 8}
    assert same(read.row_bits, written.row_bits)
    assert same(read.input_columns, written.input_columns)
    assert same(read.token_weights, written.token_weights)
    assert kind_of(tmp_path / "p") == "plan"


def test_an_unknown_predicted_error_stays_unknown(tmp_path):
    save_plan(plan(predicted_error=float("nan")), tmp_path / "p")
    assert load_plan(tmp_path / "p").predicted_error != load_plan(tmp_path / "p").predicted_error


def test_the_same_values_give_the_same_bytes(tmp_path):
    written = plan()
    save_plan(written, tmp_path / "one")
    save_plan(written, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_exact_measurements_survive_their_file(tmp_path):
    rows = [RowMeasurement(LAYERS[0], 1, 4, 1e-9), RowMeasurement(LAYERS[1], 0, 2, 0.25)]
    save_exact(rows, tmp_path / "x.exact.json")
    assert load_exact(tmp_path / "x.exact.json") == rows
    assert kind_of(tmp_path / "x.exact.json") == "exact rows"


def description(kind: str, **values: object) -> dict[str, str]:
    return {"qvla": json.dumps({"kind": kind, **values})}


def test_one_kind_of_file_is_not_taken_for_another(tmp_path):
    save_table(table(), tmp_path / "t")
    save_plan(plan(), tmp_path / "p")
    with pytest.raises(CalibrationError, match="plan file, not a sensitivity file"):
        load_table(tmp_path / "p")
    with pytest.raises(ConfigurationError, match="sensitivity file, not a plan file"):
        load_plan(tmp_path / "t")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_exact(tmp_path / "t")


def edited(path, change) -> None:
    """Write a plan whose description is changed."""
    save_plan(plan(), path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        value = json.loads(file.metadata()["qvla"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(value, tensors)
    save_file(tensors, path, {"qvla": json.dumps(value)})


SPOILT = {
    "a missing field": (lambda v, t: v.pop("budget"), "budget"),
    "a field too many in the budget": (lambda v, t: v["budget"].update(x=1), "x"),
    "a field of another type": (lambda v, t: v.update(predicted_error="much"), "predicted_error"),
    "a list for an object": (lambda v, t: v.update(budget=[]), "budget"),
    "no layers": (lambda v, t: v.update(layers="none"), "layers"),
    "a layer without rows": (lambda v, t: v["layers"][0].pop("rows"), "rows"),
    "a layer without bits": (lambda v, t: t.pop("row_bits/c"), "row_bits/c"),
    "bits of a layer that is none": (
        lambda v, t: t.update({"row_bits/x": torch.zeros(2).byte()}),
        "row_bits/x",
    ),
    "too few bits": (lambda v, t: t.update({"row_bits/c": t["row_bits/c"][:1]}), "row_bits/c"),
    "bits of another type": (
        lambda v, t: t.update({"row_bits/c": t["row_bits/c"].int()}),
        "row_bits/c",
    ),
    "a width that is none": (
        lambda v, t: t.update({"row_bits/c": torch.tensor([5, 8]).byte()}),
        "row_bits/c",
    ),
    "no token weights": (lambda v, t: t.pop("token_weights/a.b"), "token_weights/a.b"),
    "a column beyond the last": (
        lambda v, t: t.update({"input_columns/c": torch.tensor([0, 3], dtype=torch.int32)}),
        "input_columns/c",
    ),
    "activations of 4 bits": (lambda v, t: v["activation_bits"].update(c=4), "activation_bits"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_plan_is_refused_by_name(tmp_path, fault):
    change, culprit = SPOILT[fault]
    edited(tmp_path / "p", change)
    with pytest.raises(ConfigurationError) as error:
        load_plan(tmp_path / "p")
    assert str(tmp_path / "p") in str(error.value)
    assert culprit in str(error.value)


def test_a_table_with_too_few_scores_is_refused(tmp_path):
    written = table()
    written.scores["c"] = written.scores["c"][:, :3]
    save_table(written, tmp_path / "t")
    with pytest.raises(CalibrationError, match="scores/c"):
        load_table(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x08" + b"\0" * 7 + b"{      }"])
def test_rubbish_is_refused_by_name(tmp_path, content):
    path = tmp_path / "rubbish"
    path.write_bytes(content)
    for load in (load_table, load_plan, load_exact):
        with pytest.raises(QvlaError, match="rubbish"):
            load(path)
    assert kind_of(path) is None


def test_an_absent_file_is_told(tmp_path):
    for load in (load_table, load_plan, load_exact, kind_of):
        with pytest.raises(QvlaError, match="absent"):
            load(tmp_path / "absent")
