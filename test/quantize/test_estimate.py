"""What a run will take, told before it starts."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.cli import estimates
from qvla_ros.errors import ConfigurationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.registry import open_model
from qvla_ros.quantize.estimate import (
    Estimate,
    Workload,
    expected_tokens,
    flop_rate,
    measure_estimate,
    quantize_estimate,
)
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.pipeline import calibrate, measure_model
from qvla_ros.quantize.sensitivity import MeasureSettings


def llama_block(index, width=4096, hidden=11008):
    name = f"layers.{index}"
    square = [LinearLayer(f"{name}.{part}", width, width, "language") for part in "qkvo"]
    wide = [LinearLayer(f"{name}.{part}", hidden, width, "language") for part in ("gate", "up")]
    return (*square, *wide, LinearLayer(f"{name}.down", width, hidden, "language"))


def workload(blocks, frames=1, tokens=614):
    stages = tuple(llama_block(index) for index in range(blocks))
    counts = {one.name: frames * tokens for stage in stages for one in stage}
    return Workload(stages, counts, frames, 400_000_000)


def test_memory_of_a_measurement_grows_with_its_layers_only_by_what_lies_between_stages():
    few, many = (measure_estimate(workload(count), 2, 1e11) for count in (2, 32))
    assert many.memory_bytes < 1.5 * few.memory_bytes < 1.5 * 8e9
    assert 13 < many.seconds / few.seconds < 17


def test_quantizing_seven_billion_weights_fits_a_workstation():
    found = quantize_estimate(workload(32), 3.9, 1e11)
    assert 4e9 < found.memory_bytes < 20e9
    assert found.disk_bytes > 3 * 3.9 / 8 * workload(32).weights


def test_more_frames_probes_and_a_slower_machine_take_longer():
    base = measure_estimate(workload(2), 2, 1e11).seconds
    assert measure_estimate(workload(2), 4, 1e11).seconds > base
    assert measure_estimate(workload(2, frames=8), 2, 1e11).seconds > base
    assert measure_estimate(workload(2), 2, 5e10).seconds > 1.5 * base
    assert flop_rate() > 0


def test_the_expected_tokens_are_about_those_that_the_layers_see(tmp_path):
    model = open_model(tiny_folder(tmp_path / "tiny"))
    frames = calibrate(model, [tiny_observation(seed) for seed in range(3)], 3)
    table = measure_model(model, frames, settings=MeasureSettings(probes=1))
    expected = expected_tokens(model.network, frames.frames[0], 3)
    for name, weights in table.token_weights.items():
        assert 0.5 * len(weights) <= expected[name] <= 2 * len(weights), name


def test_checking_the_result_counts_and_may_be_the_peak():
    """Loading the packed file to weigh it, with the unpacked weights in float32."""
    few = quantize_estimate(workload(2), 3.9, 1e11)
    heavy = replace(workload(2), other_weights=3_000_000_000)
    assert quantize_estimate(heavy, 3.9, 1e11).memory_bytes - few.memory_bytes > 4 * 2_600_000_000


def test_a_measurement_needs_disk_for_what_the_journal_keeps_of_every_probe():
    few, many = (measure_estimate(workload(2, 8), probes, 1e11) for probes in (2, 8))
    assert many.disk_bytes - few.disk_bytes == 2 * 6 * workload(2, 8).kept_states()


@pytest.fixture
def machine(monkeypatch):
    """8 GB of memory and 5 GB of disk."""
    memory = {"machine_available": 7_500_000_000, "process_resident": 500_000_000}
    monkeypatch.setattr("qvla_ros.policy.memory.process_memory", lambda: memory)
    disk = SimpleNamespace(free=5_000_000_000)
    monkeypatch.setattr("qvla_ros.cli.estimates.shutil.disk_usage", lambda path: disk)


def test_a_run_that_needs_more_memory_than_there_is_is_refused(machine, capsys):
    estimates.announce("measuring", Estimate(8_000_000_000, 10, 60.0))
    assert "8.0 GB of memory, 0.0 GB of disk, 1 min" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"8\.0 GB are available: .* fewer --frames"):
        estimates.announce("measuring", Estimate(9_000_000_000, 10, 60.0))


def test_a_run_that_needs_more_disk_than_there_is_is_refused(machine, tmp_path):
    work = tmp_path / "not yet" / "out.work"
    estimates.announce("measuring", Estimate(1, 5_000_000_000, 60.0), work)
    with pytest.raises(ConfigurationError, match=r"6\.0 GB of disk, .* has 5\.0 GB: .*--work"):
        estimates.announce("measuring", Estimate(1, 6_000_000_000, 60.0), work)


def test_what_an_interrupted_run_has_written_is_not_wanted_again(machine, tmp_path):
    with (tmp_path / "stage-0000.safetensors").open("wb") as file:
        file.truncate(2_000_000_000)
    estimates.announce("measuring", Estimate(1, 6_000_000_000, 60.0), tmp_path)


def test_the_estimates_of_all_steps_are_kept_with_what_they_took(tmp_path, capsys):
    """The second step's used to be lost, because the first had a file already."""
    journal = Journal(tmp_path / "work", {})
    kept = tmp_path / "work" / "estimates.json"
    with estimates.estimated("measuring", Estimate(1, 2, 3.0), journal, ["b", "a"]) as clock:
        assert json.loads(kept.read_text())["measuring"]["estimated"]["seconds"] == 3.0
        tell = clock.before(lambda done, total: None)
        tell(1, 2)
        tell(2, 2)
    with estimates.estimated("quantizing", Estimate(1, 2, 3.0), journal, []):
        pass
    found = json.loads(kept.read_text())
    assert list(found) == ["measuring", "quantizing"]
    assert list(found["measuring"]["took"]["stage_seconds"]) == ["b", "a"]
    assert found["quantizing"]["took"]["seconds"] >= 0
    assert "quantizing took" in capsys.readouterr().err
