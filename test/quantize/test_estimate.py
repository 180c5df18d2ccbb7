"""What a run will take, told before it starts."""

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
    total_memory,
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
    expected = expected_tokens(model.network, frames)
    for name, weights in table.token_weights.items():
        assert 0.5 * len(weights) <= expected[name] <= 2 * len(weights), name


def test_the_memory_of_the_machine_is_read_from_the_kernel():
    assert total_memory(["MemFree: 1 kB", "MemTotal:       24573432 kB"]) == 24573432 * 1024
    assert total_memory([]) is None


def test_a_run_that_needs_more_memory_than_there_is_is_refused(tmp_path, monkeypatch, capsys):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\n")
    monkeypatch.setattr(estimates, "_MEMINFO", meminfo)
    estimates.announce("measuring", Estimate(8_000_000_000, 10, 60.0))
    assert "8.0 GB of memory, 0.0 GB of disk, 1 min" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"this machine has 8\.2 GB"):
        estimates.announce("measuring", Estimate(9_000_000_000, 10, 60.0))


def test_the_estimate_is_kept_and_held_against_the_truth(tmp_path, capsys):
    journal = Journal(tmp_path / "work", {})
    with estimates.estimated("quantizing", Estimate(1, 2, 3.0), journal):
        assert '"seconds": 3.0' in (tmp_path / "work" / "estimate.json").read_text()
    assert "quantizing took" in capsys.readouterr().err
