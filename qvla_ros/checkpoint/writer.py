"""Write a packed checkpoint: the same bytes for the same input, and all of it or nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qvla_ros.atomic_file import atomic_file
from qvla_ros.checkpoint.container import encode_header, place_tensors
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.checkpoint.layout import layer_to_tensors
from qvla_ros.checkpoint.manifest import UNSEALED, Manifest
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.tensor_names import OTHER_PREFIXES
from qvla_ros.errors import CheckpointError


def write_checkpoint(
    path: Path | str,
    manifest: Manifest,
    layers: Mapping[str, PackedLinear],
    tensors: Mapping[str, torch.Tensor],
) -> Manifest:
    """Write a checkpoint atomically.

    Args:
        path: Where to; an existing file is replaced, but only by a complete one.
        manifest: ``layers`` and ``sha256`` are filled in here; if it has layers already, they
            must be those of ``layers``. The plan must fit them.
        layers: Packed layers by name; their order is kept in the manifest.
        tensors: All other tensors, named ``float.<parameter name>`` or ``processing.<name>``.

    Returns:
        The manifest as it was written.

    Raises:
        CheckpointError: A layer or the plan is invalid, or the file cannot be written
            (``UNWRITABLE``). Nothing is left behind, and an existing file is untouched.
        ValueError: A name, a dtype or ``manifest.layers`` is wrong.
    """
    path = Path(path)
    specs = _specs(layers)
    if manifest.layers not in ((), specs):
        raise ValueError("manifest.layers are not the layers that were given")
    named = _named_tensors(layers, tensors)
    unsealed = replace(manifest, layers=specs, sha256=UNSEALED)
    Manifest.from_json(unsealed.to_json())  # the reader's own checks
    entries = place_tensors(named)
    ordered = [named[entry.name] for entry in entries]
    digest = _digest(encode_header(entries, unsealed.to_json()), ordered)
    sealed = replace(unsealed, sha256=digest)
    try:
        with atomic_file(path) as file:
            file.write(encode_header(entries, sealed.to_json()))
            for tensor in ordered:
                file.write(_bytes_of(tensor))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror}", fault=CheckpointFault.UNWRITABLE
        ) from error
    return sealed


def _specs(layers: Mapping[str, PackedLinear]) -> tuple[LayerSpec, ...]:
    for name, layer in layers.items():
        if name != layer.name:
            raise ValueError(f"the layer {layer.name!r} stands under the name {name!r}")
        if name.startswith(OTHER_PREFIXES):
            raise ValueError(f"a layer's name cannot begin as {name!r} does")
        layer.validate()
    return tuple(LayerSpec.of(layer) for layer in layers.values())


def _named_tensors(
    layers: Mapping[str, PackedLinear], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for layer in layers.values():
        named.update(layer_to_tensors(layer))
    for name, tensor in tensors.items():
        if not name.startswith(OTHER_PREFIXES):
            raise ValueError(f"the tensor {name!r} must begin with one of {OTHER_PREFIXES}")
        named[name] = tensor
    return {name: tensor.detach() for name, tensor in named.items()}


def _digest(header: bytes, tensors: Sequence[torch.Tensor]) -> str:
    checksum = hashlib.sha256(header)
    for tensor in tensors:
        checksum.update(_bytes_of(tensor))
    return checksum.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements in row-major order; copied only if they are not so already."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
