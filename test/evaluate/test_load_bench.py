"""Loading in a child process: what is counted, and that the synthetic file is a checkpoint."""

import subprocess

import pytest

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.evaluate import load_bench
from qvla_ros.evaluate.load_bench import LoadResult, measure_load, write_synthetic_checkpoint
from qvla_ros.policy.policy import load_policy


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(load_bench, "_SHAPE", (256, 256))
    path = tmp_path / "synthetic"
    size = write_synthetic_checkpoint(path, 1_000_000)
    assert size == path.stat().st_size
    return path


def test_the_synthetic_file_is_a_checkpoint_of_at_least_the_size(checkpoint) -> None:
    layers = read_checkpoint(checkpoint).layers
    assert checkpoint.stat().st_size >= 1_000_000
    assert sum(layer.nbytes for layer in layers.values()) < 1_100_000


def test_what_stays_and_the_peak_hold_at_least_the_layers(checkpoint) -> None:
    result = measure_load(checkpoint)
    layers = read_checkpoint(checkpoint).layers
    assert result.file_bytes == checkpoint.stat().st_size
    assert result.layer_bytes >= sum(layer.nbytes for layer in layers.values())
    assert result.peak_bytes >= result.steady_bytes > 0
    assert result.seconds > 0


def test_a_checkpoint_of_a_network_is_loaded_as_a_whole_policy(packed_checkpoint) -> None:
    """Its embedding, head and tokenizer count too; only its packed layers used to be loaded."""
    result = measure_load(packed_checkpoint)
    assert result.layer_bytes == sum(load_policy(packed_checkpoint).memory_bytes().values())
    assert result.peak_bytes >= result.layer_bytes


def test_a_file_that_is_no_checkpoint_fails(tmp_path, capfd) -> None:
    (tmp_path / "x").write_text("no checkpoint, but long enough")
    with pytest.raises(subprocess.CalledProcessError):
        measure_load(tmp_path / "x")
    assert "not a safetensors file" in capfd.readouterr().err


def test_ratios_are_per_byte_of_the_file() -> None:
    result = LoadResult(100, 1.0, 120, 110, 105)
    assert result.to_json()["peak_over_file"] == 1.2
    assert result.to_json()["steady_over_file"] == 1.1
