"""The safetensors container, byte by byte: 8 bytes of length, a JSON header, the tensors.

It is read and written here rather than by the safetensors library because that library holds
every tensor twice while it loads (a robot's memory has no room for that), and because the bytes
must be the same on every machine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.strict_json import canonical_json, parse_object
from qvla_ros.errors import CheckpointError

MANIFEST_KEY = "qvla"
"""The single key of the header's ``__metadata__``."""

MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors format."""

LENGTH_BYTES = 8
"""The file starts with the header's length, an unsigned little-endian integer of this size."""

DATA_ALIGNMENT = 64
"""The tensors start at a multiple of this; the header is padded with spaces."""

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""The dtypes that a checkpoint may hold, by their names in the header."""

_METADATA = "__metadata__"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in the header.

    Attributes:
        name: Its name.
        dtype: One of :data:`DTYPES`.
        shape: Its shape.
        begin: First byte, counted from the start of the tensors.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.begin + self.nbytes


def place_tensors(tensors: Mapping[str, torch.Tensor]) -> list[TensorEntry]:
    """Order tensors in the file: larger elements first, so that each is aligned; then by name.

    Raises:
        ValueError: A dtype that the format does not hold.
    """
    entries = []
    begin = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name.encode())):
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r}: a checkpoint cannot hold {tensor.dtype}")
        entries.append(TensorEntry(name, tensor.dtype, tuple(tensor.shape), begin))
        begin = entries[-1].end
    return entries


def encode_header(entries: Sequence[TensorEntry], manifest: str) -> bytes:
    """The bytes before the tensors: length, JSON, and spaces up to the alignment."""
    value: dict[str, object] = {
        entry.name: {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
        for entry in entries
    }
    value[_METADATA] = {MANIFEST_KEY: manifest}
    text = canonical_json(value).encode("utf-8")
    text += b" " * (-(LENGTH_BYTES + len(text)) % DATA_ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes exceeds the format's {MAX_HEADER_BYTES}")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def decode_header(text: bytes, data_bytes: int) -> tuple[list[TensorEntry], str]:
    """Read the JSON header strictly.

    Args:
        text: The header without its length.
        data_bytes: How many bytes follow it in the file.

    Returns:
        The tensors in the order of their bytes, which they cover without a hole, and the manifest.

    Raises:
        CheckpointError: The header is malformed, or does not describe ``data_bytes`` bytes.
    """
    value = parse_object(text, "the header", CheckpointFault.HEADER_JSON)
    metadata = value.pop(_METADATA, None)
    manifest = metadata.get(MANIFEST_KEY) if isinstance(metadata, dict) else None
    if not isinstance(manifest, str):
        raise CheckpointError(
            f"the header has no manifest ({_METADATA}.{MANIFEST_KEY}): this is a safetensors file "
            f"of another program, not a packed checkpoint; make one with `qvla quantize`",
            fault=CheckpointFault.MANIFEST_MISSING,
        )
    entries = [_decode_entry(name, item) for name, item in value.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _require_cover(entries, data_bytes)
    return entries, manifest


def _decode_entry(name: str, value: object) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"tensor {name!r}: the header must give exactly dtype, shape and data_offsets",
            fault=CheckpointFault.HEADER_ENTRY,
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"tensor {name!r}: shape and data_offsets must be lists of integers of at least 0",
            fault=CheckpointFault.HEADER_ENTRY,
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"tensor {name!r} has the unknown dtype {dtype!r}; known: {', '.join(DTYPES)}",
            fault=CheckpointFault.UNKNOWN_DTYPE,
        )
    entry = TensorEntry(name, DTYPES[dtype], tuple(shape), offsets[0])
    if entry.end != offsets[1]:
        raise CheckpointError(
            f"tensor {name!r}: {dtype} {shape} takes {entry.nbytes} bytes, but its data_offsets "
            f"are {offsets}",
            fault=CheckpointFault.OFFSETS,
        )
    return entry


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _require_cover(entries: Sequence[TensorEntry], data_bytes: int) -> None:
    """The tensors follow one another from byte 0 to the last, as safetensors demands."""
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            kind = "overlaps the tensor before it" if entry.begin < expected else "leaves a hole"
            raise CheckpointError(
                f"tensor {entry.name!r} begins at byte {entry.begin} where {expected} was "
                f"expected: it {kind}",
                fault=CheckpointFault.OFFSETS,
            )
        expected = entry.end
    if expected > data_bytes:
        raise CheckpointError(
            f"the file is truncated: its tensors take {expected} bytes and {data_bytes} are "
            f"there; copy it again",
            fault=CheckpointFault.TRUNCATED,
        )
    if expected < data_bytes:
        raise CheckpointError(
            f"the file has {data_bytes - expected} bytes after its last tensor",
            fault=CheckpointFault.TRAILING_BYTES,
        )
