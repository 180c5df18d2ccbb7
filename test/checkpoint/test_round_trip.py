"""What is written is what is read, also by the safetensors library; bytes are deterministic."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import qvla_ros.checkpoint.reader as reader
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.layout import layer_to_tensors
from qvla_ros.checkpoint.manifest import UNSEALED
from qvla_ros.checkpoint.reader import read_checkpoint, read_manifest
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.errors import CheckpointError


def assert_same_tensors(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def test_a_checkpoint_is_read_as_it_was_written(
    checkpoint_path, layers, tensors, make_manifest
) -> None:
    checkpoint = read_checkpoint(checkpoint_path)
    assert list(checkpoint.layers) == list(layers)
    for name, layer in layers.items():
        found = checkpoint.layers[name]
        assert_same_tensors(layer_to_tensors(found), layer_to_tensors(layer))
        assert found.activation_bits == layer.activation_bits
    assert_same_tensors(checkpoint.tensors, tensors)
    written = make_manifest(layers)
    specs = tuple(LayerSpec.of(layer) for layer in layers.values())
    expected = replace(written, layers=specs, sha256=checkpoint.manifest.sha256)
    assert checkpoint.manifest == expected
    assert checkpoint.manifest.sha256 != UNSEALED


def test_parameters_are_named_as_in_the_network(checkpoint_path) -> None:
    parameters = read_checkpoint(checkpoint_path).parameters()
    assert sorted(parameters) == ["count", "empty", "norm.weight", "tower.mixed.bias"]


def test_the_manifest_alone_is_the_same(checkpoint_path) -> None:
    assert read_manifest(checkpoint_path) == read_checkpoint(checkpoint_path).manifest


def test_reading_in_small_stages_gives_the_same(checkpoint_path, tensors, monkeypatch) -> None:
    monkeypatch.setattr(reader, "_STAGE_BYTES", 7)
    assert_same_tensors(read_checkpoint(checkpoint_path).tensors, tensors)


def test_the_safetensors_library_reads_the_same(checkpoint_path, layers, tensors) -> None:
    expected = dict(tensors)
    for layer in layers.values():
        expected.update(layer_to_tensors(layer))
    with safe_open(checkpoint_path, "pt") as file:
        assert list(file.metadata()) == ["qvla"]
        names = file.keys()
        assert_same_tensors({name: file.get_tensor(name) for name in names}, expected)


def test_every_tensor_is_aligned_to_its_elements(checkpoint_path) -> None:
    data = checkpoint_path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 64 == 0
    with open(checkpoint_path, "rb", buffering=0) as file:
        _, entries, _ = reader._read_header(file)
    assert all(entry.begin % entry.dtype.itemsize == 0 for entry in entries)


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_the_tensors(
    checkpoint_path, tmp_path, layers, tensors, make_manifest
) -> None:
    again = tmp_path / "again"
    backwards = dict(reversed(tensors.items()))
    write_checkpoint(again, make_manifest(layers), layers, backwards)
    assert again.read_bytes() == checkpoint_path.read_bytes()


def test_a_checkpoint_that_was_read_is_written_again_byte_for_byte(
    checkpoint_path, tmp_path
) -> None:
    checkpoint = read_checkpoint(checkpoint_path)
    again = tmp_path / "again"
    write_checkpoint(again, checkpoint.manifest, checkpoint.layers, checkpoint.tensors)
    assert again.read_bytes() == checkpoint_path.read_bytes()


def test_a_tensor_that_is_not_contiguous_is_written_in_row_major_order(
    tmp_path, layers, make_manifest
) -> None:
    table = torch.arange(6.0).view(2, 3).t()
    write_checkpoint(tmp_path / "x", make_manifest(layers), layers, {"float.table": table})
    assert torch.equal(read_checkpoint(tmp_path / "x").tensors["float.table"], table)


def test_a_symbolic_link_to_a_checkpoint_is_read(checkpoint_path, tmp_path) -> None:
    link = tmp_path / "link"
    link.symlink_to(checkpoint_path)
    assert read_checkpoint(link).layers


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step, checkpoint_path, layers, make_manifest, monkeypatch
) -> None:
    before = checkpoint_path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        write_checkpoint(checkpoint_path, make_manifest(layers), layers, {})
    assert caught.value.fault == CheckpointFault.UNWRITABLE
    assert checkpoint_path.read_bytes() == before
    assert list(checkpoint_path.parent.iterdir()) == [checkpoint_path]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, layers, make_manifest, monkeypatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "x", make_manifest(layers), layers, {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path, layers, make_manifest) -> None:
    path = tmp_path / "nowhere" / "x"
    with pytest.raises(CheckpointError, match="nowhere/x: cannot be written"):
        write_checkpoint(path, make_manifest(layers), layers, {})


def test_a_tensor_without_a_known_prefix_is_refused(tmp_path, layers, make_manifest) -> None:
    with pytest.raises(ValueError, match=r"'norm' must begin with"):
        write_checkpoint(tmp_path / "x", make_manifest(layers), layers, {"norm": torch.ones(1)})


def test_a_dtype_that_the_format_does_not_hold_is_refused(tmp_path, layers, make_manifest) -> None:
    wrong = {"float.mask": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"'float.mask'.*torch.bool"):
        write_checkpoint(tmp_path / "x", make_manifest(layers), layers, wrong)


def test_a_plan_that_does_not_fit_the_layers_is_refused(tmp_path, layers, make_manifest) -> None:
    manifest = make_manifest(layers)
    wrong = replace(manifest, plan=replace(manifest.plan, average_bits_per_weight=4.0))
    with pytest.raises(CheckpointError, match="but the layers have") as caught:
        write_checkpoint(tmp_path / "x", wrong, layers, {})
    assert caught.value.fault == CheckpointFault.PLAN_MISMATCH


def test_other_layers_in_the_manifest_are_refused(tmp_path, layers, make_manifest) -> None:
    manifest = replace(make_manifest(layers), layers=(LayerSpec("other", 1, 1, 1, ()),))
    with pytest.raises(ValueError, match="not the layers"):
        write_checkpoint(tmp_path / "x", manifest, layers, {})


def test_a_quality_that_is_not_finite_is_refused(tmp_path, layers, make_manifest) -> None:
    manifest = replace(make_manifest(layers), quality={"error": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path / "x", manifest, layers, {})
