"""Finished parts of a computation, and going on from them."""

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.kept_states import KeptStates
from qvla_ros.quantize.pipeline import calibrate, measure_model, plan_bits, quantize_model
from qvla_ros.quantize.sensitivity import MeasureSettings

PURPOSE = {"model": "abc", "bits": 4.0, "seed": 0}


def test_a_part_is_what_was_saved(tmp_path):
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    Journal(tmp_path / "deep" / "work", PURPOSE).save("part", tensors)
    again = Journal(tmp_path / "deep" / "work", PURPOSE)
    loaded = again.load("part")
    assert loaded is not None
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())
    assert again.load("other") is None
    again.clear()
    assert again.load("part") is None


def test_what_a_killed_run_spilled_goes_when_the_next_one_begins(tmp_path):
    """Tens of gigabytes used to stay until the end, beside those of the run that went on."""
    Journal(tmp_path, PURPOSE)
    (tmp_path / "states-killed").mkdir()
    (tmp_path / "states-killed" / "0.safetensors").write_bytes(b"much")
    Journal(tmp_path, PURPOSE)
    assert [one.name for one in tmp_path.iterdir()] == ["purpose.json"]
    alive = KeptStates(tmp_path, memory_bytes=0)
    state = {"hidden": torch.ones(2)}
    assert alive.keep(state)()["hidden"].equal(state["hidden"])


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(ConfigurationError, match="/proc/x/work cannot be worked in"):
        Journal(Path("/proc/x/work"), PURPOSE)


CHANGES = {
    "another value": ({**PURPOSE, "bits": 3.0}, "bits: 4.0 then, 3.0 now"),
    "a new setting": ({**PURPOSE, "frames": 2}, "frames: None then, 2 now"),
    "a setting less": ({"model": "abc", "bits": 4.0}, "seed: 0 then, None now"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_purpose_is_refused_with_what_differs(tmp_path, change):
    purpose, reason = CHANGES[change]
    Journal(tmp_path, PURPOSE)
    with pytest.raises(ConfigurationError, match="unfinished work") as error:
        Journal(tmp_path, purpose)
    assert f"({reason})" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_purpose_is_refused_by_name(tmp_path, content):
    (tmp_path / "purpose.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"purpose\.json .* to start anew"):
        Journal(tmp_path, PURPOSE)


def test_a_damaged_part_is_refused_by_name(tmp_path):
    journal = Journal(tmp_path, PURPOSE)
    journal.save("part", {"a": torch.ones(8)})
    path = tmp_path / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"part\.safetensors cannot be read"):
        journal.load("part")


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ConfigurationError, match="--work"):
        Journal(tmp_path, PURPOSE)


def test_what_an_interrupted_write_left_does_not_matter(tmp_path):
    (tmp_path / ".purpose.json.0123.partial").write_bytes(b"{")
    Journal(tmp_path, PURPOSE)


class KilledError(Exception):
    """Stands for the end of the process."""


def stop_at(count):
    def on_progress(done: int, total: int) -> None:
        if done == count:
            raise KilledError

    return on_progress


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def test_an_interrupted_measurement_goes_on_to_the_same_table(model, tmp_path):
    calibration = calibrate(model, [tiny_observation(seed) for seed in range(3)], 3)
    settings = MeasureSettings(probes=2)
    whole = measure_model(model, calibration, settings=settings)
    measured = []
    for count in (1, 4):
        with pytest.raises(KilledError):
            measure_model(
                model,
                calibration,
                settings=settings,
                on_progress=stop_at(count),
                journal=Journal(tmp_path, PURPOSE, interval_s=0.0),
                on_layer=lambda evidence: measured.append(evidence.layer.name),
            )
    journal = Journal(tmp_path, PURPOSE, interval_s=0.0)
    again = measure_model(model, calibration, settings=settings, journal=journal)
    assert len(measured) == len(set(measured)) > 0, "a stage was measured twice"
    for name, scores in whole.scores.items():
        assert again.scores[name].equal(scores), name
        assert again.token_weights[name].equal(whole.token_weights[name]), name


def test_an_interrupted_reconstruction_goes_on_to_the_same_codes(model, tmp_path):
    calibration = calibrate(model, [tiny_observation(seed) for seed in range(3)], 3)
    table = measure_model(model, calibration, settings=MeasureSettings(probes=1))
    plan = plan_bits(model, table, BitBudget(average_bits_per_weight=3.0))
    whole = quantize_model(model, plan, calibration)
    for count in (2, 5):
        with pytest.raises(KilledError):
            quantize_model(model, plan, calibration, stop_at(count), Journal(tmp_path, PURPOSE))
    again = quantize_model(model, plan, calibration, journal=Journal(tmp_path, PURPOSE))
    for name, layer in whole.layers.items():
        assert again.layers[name].dequantize().equal(layer.dequantize()), name
    assert again.overrides.keys() == whole.overrides.keys()
    assert all(again.overrides[name].equal(bias) for name, bias in whole.overrides.items())
