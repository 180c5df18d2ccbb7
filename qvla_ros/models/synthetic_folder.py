"""Whole model folders with random weights, in the exact layout of the released ones, at any size.

For tests, benches and dry runs: what reads a released folder reads these, and cannot tell.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.released_layout import Shape, read_llama, read_towers
from qvla_ros.models.synthetic_model import PADDING, SyntheticModel, count_numbers
from qvla_ros.models.synthetic_weights import ACTION_BINS, SyntheticWeights

_MARGIN = 64 << 20  # bytes beside the tensors: small files, and what a file system needs

OnProgress = Callable[[int, int], None]


def write_synthetic_folder(
    path: Path, model: SyntheticModel, on_progress: OnProgress | None = None
) -> Path:
    """Write the folder tensor by tensor: beside ``path`` first, which it takes when complete.

    Args:
        path: Must not exist.
        model: What to write.
        on_progress: Told bytes written and bytes in all.

    Returns:
        ``path``.

    Raises:
        ConfigurationError: ``path`` or its ``.part`` exists, or the disk is too full or cannot be
            written to.
    """
    try:
        return _written(path, model, on_progress)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


def _written(path: Path, model: SyntheticModel, on_progress: OnProgress | None) -> Path:
    partial = path.parent / f"{path.name}.part"
    for place in (path, partial):
        if place.exists():
            raise ConfigurationError(f"{place} exists already: remove it, or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_space(path.parent, model.file_bytes)
    partial.mkdir()
    try:
        _write(partial, model, _Meter(model.file_bytes, on_progress))
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted + _MARGIN:
        raise ConfigurationError(
            f"the folder takes {wanted / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB left"
        )


class _Meter:
    """Counts the bytes that were written."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _write(folder: Path, model: SyntheticModel, meter: _Meter) -> None:
    for name, value in model.small_files().items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    weights = _weights(model)
    weight_map: dict[str, str] = {}
    parts = list(_split(model.shapes, model.shards))
    for number, shapes in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        _write_shard(folder / name, shapes, weights, meter)
        weight_map |= dict.fromkeys(shapes, name)
    index = {
        "metadata": {"total_size": 2 * count_numbers(model.shapes)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for stem, (dtype, shapes) in model.side_shapes.items():
        # The released side files are torch archives whose keys tell of the trainer's wrapper.
        table = {f"module.{name}": weights.tensor(name, shapes[name], dtype) for name in shapes}
        torch.save(table, folder / f"{stem}--150000_checkpoint.pt")
        meter.add(dtype.itemsize * count_numbers(shapes))


def _weights(model: SyntheticModel) -> SyntheticWeights:
    config = model.config()
    layers = int(read_llama(config)["num_hidden_layers"] or 0)
    depth = max(layers, *(tower.depth for tower in read_towers(config)))
    last = model.vocabulary - PADDING
    return SyntheticWeights(model.seed, depth, (last - ACTION_BINS, last))


def _split(shapes: Mapping[str, Shape], parts: int) -> Iterator[dict[str, Shape]]:
    """Consecutive tensors, about as many bytes in every part."""
    share, done = count_numbers(shapes) / parts, 0
    limit = share
    part: dict[str, Shape] = {}
    for name, shape in shapes.items():
        part[name] = shape
        done += math.prod(shape)
        if done >= limit:
            limit = max(limit + share, done)
            yield part
            part = {}
    if part:
        yield part


def _write_shard(
    path: Path, shapes: Mapping[str, Shape], weights: SyntheticWeights, meter: _Meter
) -> None:
    """A safetensors file, written as the numbers come."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for block in weights.blocks(name, shape):
                rounded = block.to(torch.bfloat16)
                file.write(rounded.view(torch.uint8).numpy().tobytes())
                meter.add(rounded.nbytes)
        file.flush()
        os.fsync(file.fileno())
