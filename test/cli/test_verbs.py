"""The verbs of the offline tool, from a model folder and bags to a verified checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from small_inputs import small_inputs

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.cli.main import VERBS, main
from qvla_ros.quantize.storage import load_exact, load_table

CHEAP = ("--frames", 3, "--probes", 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[str, str]:
    """A model folder and a bag."""
    folder = small_inputs(tmp_path_factory.mktemp("verbs"))
    return str(folder / "model"), str(folder / "bag")


@pytest.fixture(scope="module")
def table(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("table") / "table.safetensors"
    assert main(["measure", *inputs, "--out", str(out), *map(str, CHEAP)]) == 0
    return out


def answer(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_verb_has_help(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"qvla {verb}" in told
        assert "70 a fault of qvla" in told


def test_inspect_counts_what_is_in_a_folder(inputs, capsys):
    facts = answer(capsys, "inspect", inputs[0])
    assert facts["kind"] == "model folder"
    assert facts["family"] == "openvla_oft"
    assert facts["live_targets"] == 2 * (1 + 2 * 4) + 2 * 7
    assert facts["targets"] == facts["live_targets"] + 2 * 4
    assert facts["missing"] == facts["unknown"] == []


def test_inspect_knows_tables_and_plans(table, tmp_path, capsys):
    plan = tmp_path / "plan"
    planned = answer(capsys, "plan", table, "--bits", 4, "--out", plan)
    shown = answer(capsys, "inspect", plan)
    assert shown["kind"] == "bit plan"
    assert planned.items() <= shown.items()
    assert answer(capsys, "inspect", table)["rows"] == sum(planned["rows_by_width"].values())


def test_the_stages_one_by_one_and_in_one_go_give_the_same_checkpoint(
    inputs, table, tmp_path, capsys
):
    model, bag = inputs
    plan, staged, at_once = (tmp_path / name for name in ("plan", "staged", "at_once"))
    budget = ("--bits", 4, "--activations", 8)
    planned = answer(capsys, "plan", table, *budget, "--model", model, "--out", plan)
    assert 3.9 < planned["average_bits_per_weight"] <= 4
    assert planned["layers_with_int8_inputs"] == 32
    assert planned["optimality_gap"] < planned["predicted_error"]
    frames = ("--frames", 3)
    first = answer(capsys, "quantize", model, bag, *frames, "--plan", plan, "--out", staged)
    second = answer(
        capsys, "quantize", model, bag, *frames, "--table", table, *budget, "--out", at_once
    )
    assert first["sha256"] == second["sha256"]
    assert first["file_bytes"] == staged.stat().st_size
    assert staged.read_bytes() == at_once.read_bytes()


def test_a_checkpoint_tells_the_error_that_verify_measures(inputs, table, tmp_path, capsys):
    model, bag = inputs
    heldout, out = str(Path(bag).with_name("heldout")), tmp_path / "policy"
    words = ("quantize", model, bag, "--frames", 3, "--table", table, "--bits", 8, "--out", out)
    written = answer(capsys, *words, "--heldout", heldout)
    facts = answer(capsys, "inspect", out, "--kernels")
    assert facts["sha256"] == written["sha256"]
    kernels = facts["kernels"]
    assert len(kernels["layers"]) == facts["layers"]
    assert all(text.split()[-1] in kernels["reasons"] for text in kernels["layers"].values())
    verified = answer(capsys, "verify", out, model, heldout)
    assert verified["intact"]
    assert facts["quality"]["heldout_frames"] == 6
    assert facts["quality"] == written["quality"] == verified["as_the_checkpoint_says"]
    assert verified["action_error_l1"] == facts["quality"]["heldout_action_error"] > 0
    assert "calibration_action_error" in answer(capsys, *words)["quality"]


def test_more_bits_verify_better_and_a_threshold_is_kept(inputs, table, tmp_path, capsys):
    model, bag = inputs
    errors = []
    for bits in (2, 8):
        plan, out = str(tmp_path / f"plan{bits}"), str(tmp_path / f"policy{bits}")
        answer(capsys, "plan", table, "--uniform", bits, "--out", plan)
        answer(capsys, "quantize", model, bag, "--frames", 3, "--plan", plan, "--out", out)
        errors.append(answer(capsys, "verify", out, model, bag)["action_error_l1"])
    assert errors[0] > errors[1]
    between = str((errors[0] + errors[1]) / 2)
    assert main(["verify", str(tmp_path / "policy8"), *inputs, "--max-error", between]) == 0
    assert main(["verify", str(tmp_path / "policy2"), *inputs, "--max-error", between]) == 1
    assert f"> {between}" in capsys.readouterr().err


def test_int8_inputs_are_chosen_where_they_add_little(inputs, table, tmp_path, capsys):
    model, bag = inputs
    words = ("quantize", model, bag, "--frames", 3, "--table", table, "--bits", 4)
    chosen = answer(capsys, *words, "--activations", "auto", "--out", tmp_path / "auto")
    kept = answer(capsys, *words, "--out", tmp_path / "kept")
    assert chosen["layers_with_int8_inputs"] > 0 == kept["layers_with_int8_inputs"]
    errors = [one["quality"]["calibration_action_error"] for one in (chosen, kept)]
    assert errors[0] < 1.5 * errors[1]


def test_a_dry_run_writes_nothing(table, tmp_path, capsys):
    planned = answer(capsys, "plan", table, "--bits", 3, "--widths", "2,4", "--dry-run")
    assert planned["average_bits_per_weight"] <= 3
    assert planned["rows_by_width"]["8"] == 0
    assert not list(tmp_path.iterdir())


def test_a_metric_that_counts_nothing_but_the_first_step_gives_other_scores(
    inputs, table, tmp_path, capsys
):
    out = tmp_path / "first_step"
    weights = ",".join(["1", *"0" * 7])
    words = ("measure", *inputs, "--out", out, *CHEAP, "--step-weights", weights)
    answer(capsys, *words, "--gripper-margin", 0.5)
    assert load_table(out).scores.keys() == load_table(table).scores.keys()
    assert not same_scores(load_table(out), load_table(table))


def test_measure_writes_what_single_rows_really_do(inputs, tmp_path, capsys):
    words = ("measure", *inputs, "--out", tmp_path / "t", *CHEAP, "--exact-rows", 12)
    facts = answer(capsys, *words)
    assert set(facts["spearman_by_width"]) == {"2", "4", "8"}
    rows = load_exact(tmp_path / "t.exact.json")
    assert len(rows) == 36
    assert min(row.exact for row in rows) >= 0


def test_a_report_shows_all_that_a_folder_holds(inputs, tmp_path, capsys):
    model, bag = inputs
    table, out = tmp_path / "t.safetensors", tmp_path / "p.qvla.safetensors"
    answer(capsys, "measure", model, bag, "--out", table, *CHEAP, "--exact-rows", 40)
    words = ("quantize", model, bag, "--frames", 3, "--table", table, "--bits", 4, "--out", out)
    answer(capsys, *words)
    page = tmp_path / "page.html"
    shown = answer(capsys, "report", tmp_path, "--out", page)
    assert shown["checkpoints"] == ["p.qvla.safetensors"]
    assert shown["plans"] == ["p.qvla.safetensors.plan.safetensors"]
    assert shown["tables"] == ["t.safetensors"]
    assert shown["exact_measurements"] == ["t.safetensors.exact.json"]
    text = page.read_text()
    for word in ("3 calibration frames", "Where the bits went", "Spearman", "down_proj"):
        assert word in text
    assert text.count("<svg") == 5
    assert main(["report", str(tmp_path / "page.html"), "--out", str(tmp_path / "no")]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_answers_no_numbers_is_an_error_that_names_it(
    inputs, table, tmp_path, capsys
):
    """``--json`` used to end as a fault of the program, because JSON has no NaN."""
    model, bag = inputs
    plan, out = tmp_path / "plan", tmp_path / "out"
    answer(capsys, "plan", table, "--uniform", 8, "--out", plan)
    answer(capsys, "quantize", model, bag, "--frames", 3, "--plan", plan, "--out", out)
    packed = read_checkpoint(out)
    name = "float.action_head.model.fc2.bias"
    tensors = {**packed.tensors, name: torch.full_like(packed.tensors[name], torch.nan)}
    write_checkpoint(out, packed.manifest, packed.layers, tensors)
    assert main(["verify", str(out), model, bag, "--json"]) == 2
    assert f"{out} answers actions that are no finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("measure", "{bag}", "--exact-rows", "4"), ("compare", "{bag}", "--heldout", "x")]
)
def test_a_float_model_that_does_not_fit_is_refused_before_it_is_loaded(
    inputs, tmp_path, capsys, monkeypatch, words
):
    memory = {"machine_available": 100_000, "process_resident": 1000}
    monkeypatch.setattr("qvla_ros.policy.memory.process_memory", lambda: memory)
    verb, *rest = (word.format(bag=inputs[1]) for word in words)
    assert main([verb, inputs[0], *rest, "--out", str(tmp_path / "out")]) == 2
    assert "holds the whole float network" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_peak_of_memory_is_told(inputs, capsys):
    assert main(["inspect", inputs[0]]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("qvla inspect: peak memory ")


def same_scores(first, second) -> bool:
    return all(scores.equal(second.scores[name]) for name, scores in first.scores.items())


FAULTS = {
    "no such model": (["inspect", "nowhere"], "no such file"),
    "not a bag": (["measure", "{model}", "{model}", "--out", "{tmp}/t"], "model"),
    "too few frames": (
        ["measure", "{model}", "{bag}", "--out", "{tmp}/t", "--frames", "99"],
        "--frames",
    ),
    "no such table": (["plan", "{tmp}/absent", "--bits", "4", "--dry-run"], "absent"),
    "a budget of 17 bits": (["plan", "{table}", "--bits", "17", "--dry-run"], "17"),
    "bytes without a model": (["plan", "{table}", "--max-bytes", "9", "--dry-run"], "--model"),
    "too few bytes": (
        ["plan", "{table}", "--max-bytes", "9", "--model", "{model}", "--dry-run"],
        "too small",
    ),
    "no budget": (["quantize", "{model}", "{bag}", "--out", "{tmp}/c"], "give a budget"),
    "a plan and a budget": (
        ["quantize", "{model}", "{bag}", "--plan", "x", "--bits", "4", "--out", "{tmp}/c"],
        "has its budget",
    ),
    "a table as a plan": (
        ["quantize", "{model}", "{bag}", "--frames", "3", "--plan", "{table}", "--out", "{tmp}/c"],
        "not a plan file",
    ),
    "a table of other frames": (
        [
            "quantize",
            "{model}",
            "{bag}",
            "--table",
            "{table}",
            "--bits=4",
            "--frames=2",
            "--out={tmp}/c",
        ],
        "the same number of frames",
    ),
    "a plan and its activations": (
        ["quantize", "{model}", "{bag}", "--plan", "x", "--activations=8", "--out={tmp}/c"],
        "has its activations",
    ),
    "activations without frames": (
        ["plan", "{table}", "--bits", "4", "--activations", "auto", "--dry-run"],
        "qvla quantize",
    ),
    "too few weights": (
        [
            "measure",
            "{model}",
            "{bag}",
            "--out",
            "{tmp}/t",
            "--frames",
            "3",
            "--step-weights",
            "1",
        ],
        "--step-weights has 1 weights, the model needs 8",
    ),
    "milliseconds without times": (
        ["plan", "{table}", "--max-latency-ms", "9", "--dry-run"],
        "--latency-table",
    ),
    "nowhere to write": (["plan", "{table}", "--bits", "4"], "--dry-run"),
    "no such configuration": (["measure", "--config", "{tmp}/absent"], "absent"),
    "nowhere to write a plan": (
        ["plan", "{table}", "--bits", "4", "--out", "/proc/x/plan"],
        "/proc/x/plan cannot be written",
    ),
    "nowhere to work": (
        ["measure", "{model}", "{bag}", "--frames", "3", "--out", "/proc/x/table"],
        "/proc has 0.0 GB",
    ),
    "a folder as a checkpoint": (["verify", "{model}", "{model}", "{bag}"], "not a regular file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_user_is_one_clear_line(inputs, table, tmp_path, capsys, fault):
    words, culprit = FAULTS[fault]
    places = {"model": inputs[0], "bag": inputs[1], "table": table, "tmp": tmp_path}
    assert main([word.format(**places) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert culprit in lines[-1]
    assert lines[-1].startswith("qvla ")
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_program_keeps_its_traceback(inputs, capsys, monkeypatch):
    def broken(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(VERBS["inspect"], "run", broken)
    assert main(["inspect", inputs[0]]) == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert told.strip().endswith("this is a fault of qvla; please report it")


def test_an_interruption_is_no_fault(inputs, capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS["inspect"], "run", interrupted)
    assert main(["inspect", inputs[0]]) == 130
    assert capsys.readouterr().err == "qvla inspect: interrupted\n"
