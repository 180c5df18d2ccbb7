"""Read a packed checkpoint: every byte once, straight into the memory where it stays.

On the way to another device than the CPU it passes through one small buffer.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from qvla_ros.checkpoint.container import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    TensorEntry,
    decode_header,
)
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.layout import expected_tensors, layer_from_tensors
from qvla_ros.checkpoint.manifest import UNSEALED, Manifest
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.tensor_names import FLOAT_PREFIX, OTHER_PREFIXES, PROCESSING_PREFIX
from qvla_ros.errors import CheckpointError

_STAGE_BYTES = 8 * 2**20  # read, hashed and dropped from the page cache together
_HERE = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class PackedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        manifest: What it says about itself.
        layers: The packed layers by name, in the manifest's order.
        tensors: All other tensors by their full names: ``float.<parameter name>`` and
            ``processing.<name>``, in the dtypes of the file.
    """

    manifest: Manifest
    layers: dict[str, PackedLinear]
    tensors: dict[str, torch.Tensor]

    def parameters(self) -> dict[str, torch.Tensor]:
        """The network's unpacked parameters by their own names (without ``float.``)."""
        return {
            name.removeprefix(FLOAT_PREFIX): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(FLOAT_PREFIX)
        }


def read_checkpoint(
    path: Path | str, *, verify: bool = True, device: torch.device | None = None
) -> PackedCheckpoint:
    """Read and check a packed checkpoint.

    The peak of memory is the file's size plus the header: no tensor is held twice, and pages are
    dropped from the page cache as soon as they are copied, where the system can do that.

    Args:
        path: The file.
        verify: Compare the checksum. Shapes, dtypes, scales and row orders are always checked.
        device: Where the layers and the parameters go; what the processing needs stays here.

    Raises:
        CheckpointError: Anything is wrong with the file; ``fault`` says what, as a member of
            :class:`CheckpointFault`, and the message begins with the path.
    """
    path = Path(path)
    try:
        _require_regular_file(path)
        with FileIO(path, "rb") as file:
            return _read(file, verify, device or _HERE)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", fault=error.fault) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}", fault=CheckpointFault.UNREADABLE
        ) from error


def read_manifest(path: Path | str) -> Manifest:
    """Read the manifest only: no tensor is read, and the checksum is not compared.

    Raises:
        CheckpointError: As :func:`read_checkpoint`, as far as the header tells.
    """
    path = Path(path)
    try:
        _require_regular_file(path)
        with FileIO(path, "rb") as file:
            return _read_header(file)[2]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", fault=error.fault) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}", fault=CheckpointFault.UNREADABLE
        ) from error


def _require_regular_file(path: Path) -> None:
    """Before opening: to open a pipe would wait for a writer."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            "no such file; make one with `qvla quantize`", fault=CheckpointFault.MISSING
        ) from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            "not a regular file; a checkpoint is one .safetensors file",
            fault=CheckpointFault.NOT_A_FILE,
        )


def _read(file: FileIO, verify: bool, device: torch.device) -> PackedCheckpoint:
    header, entries, manifest = _read_header(file)
    checksum = _Checksum(header, manifest, verify)
    tensors = _read_tensors(file, len(header), entries, checksum, device)
    layers = {}
    for spec in manifest.layers:
        layer = layer_from_tensors(spec, tensors)
        layer.validate()
        layers[spec.name] = layer
        for name in expected_tensors(spec):
            del tensors[name]
    return PackedCheckpoint(manifest, layers, tensors)


def _read_header(file: FileIO) -> tuple[bytes, list[TensorEntry], Manifest]:
    """The bytes before the tensors, the tensors in file order, and the manifest that fits them."""
    size = os.fstat(file.fileno()).st_size
    if size < LENGTH_BYTES:
        raise CheckpointError(
            f"the file is truncated: it has {size} bytes, and its header's length alone takes "
            f"{LENGTH_BYTES}; copy it again",
            fault=CheckpointFault.TRUNCATED,
        )
    length_bytes = _read_exactly(file, LENGTH_BYTES)
    length = int.from_bytes(length_bytes, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header's length is {length} bytes, outside 2..{MAX_HEADER_BYTES}: this is not "
            f"a safetensors file",
            fault=CheckpointFault.HEADER_SIZE,
        )
    if LENGTH_BYTES + length > size:
        raise CheckpointError(
            f"the file is truncated: its header takes {length} bytes and "
            f"{size - LENGTH_BYTES} are there; copy it again",
            fault=CheckpointFault.TRUNCATED,
        )
    text = _read_exactly(file, length)
    entries, manifest_json = decode_header(text, size - LENGTH_BYTES - length)
    manifest = Manifest.from_json(manifest_json)
    _require_expected_tensors(entries, manifest)
    return length_bytes + text, entries, manifest


def _require_expected_tensors(entries: Sequence[TensorEntry], manifest: Manifest) -> None:
    """Exactly the tensors of the manifest's layers, and others under the known prefixes."""
    found = {entry.name: entry for entry in entries}
    expected = {}
    for spec in manifest.layers:
        expected.update(expected_tensors(spec))
    for name, (dtype, shape) in expected.items():
        entry = found.get(name)
        if entry is None:
            raise CheckpointError(
                f"the tensor {name!r} is missing", fault=CheckpointFault.TENSOR_MISSING
            )
        if entry.dtype != dtype:
            raise CheckpointError(
                f"the tensor {name!r} must be {dtype}, not {entry.dtype}",
                fault=CheckpointFault.TENSOR_DTYPE,
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"the tensor {name!r} must have the shape {list(shape)}, not {list(entry.shape)}",
                fault=CheckpointFault.TENSOR_SHAPE,
            )
    for name in found:
        if name not in expected and not name.startswith(OTHER_PREFIXES):
            raise CheckpointError(
                f"the tensor {name!r} belongs to no layer of the manifest",
                fault=CheckpointFault.TENSOR_UNEXPECTED,
            )


class _Checksum:
    """SHA-256 of the whole file with its own digits read as zeros."""

    def __init__(self, header: bytes, manifest: Manifest, verify: bool) -> None:
        self._expected = manifest.sha256
        self._hash = hashlib.sha256() if verify else None
        self.update(header.replace(manifest.sha256.encode(), UNSEALED.encode()))

    def update(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def require_match(self) -> None:
        if self._hash is not None and self._hash.hexdigest() != self._expected:
            raise CheckpointError(
                f"the file is damaged: its checksum is {self._hash.hexdigest()[:12]}..., and it "
                f"was written with {self._expected[:12]}...; copy it again",
                fault=CheckpointFault.CHECKSUM,
            )


def _read_tensors(
    file: FileIO,
    data_start: int,
    entries: Sequence[TensorEntry],
    checksum: _Checksum,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    tensors = {}
    staging = None if device == _HERE else torch.empty(_STAGE_BYTES, dtype=torch.uint8)
    for entry in entries:
        here = staging is None or entry.name.startswith(PROCESSING_PREFIX)
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8, device=_HERE if here else device)
        for start in range(0, entry.nbytes, _STAGE_BYTES):
            target = buffer[start : start + _STAGE_BYTES]
            stage = target if here or staging is None else staging[: len(target)]
            view = stage.numpy().data
            _read_into(file, view)
            checksum.update(view)
            _drop_from_page_cache(file, data_start + entry.begin + start, len(stage))
            if stage is not target:
                target.copy_(stage)
        tensors[entry.name] = buffer.view(entry.dtype).view(entry.shape)
    checksum.require_match()
    return tensors


def _read_exactly(file: FileIO, count: int) -> bytes:
    data = bytearray(count)
    _read_into(file, memoryview(data))
    return bytes(data)


def _read_into(file: FileIO, view: memoryview) -> None:
    while len(view):
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                "the file became shorter while it was read", fault=CheckpointFault.TRUNCATED
            )
        view = view[count:]


def _drop_from_page_cache(file: FileIO, start: int, count: int) -> None:
    """Where memory is shared with the GPU, the cached copy would count twice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, count, os.POSIX_FADV_DONTNEED)
