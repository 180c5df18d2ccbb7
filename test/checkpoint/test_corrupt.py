"""A table of corrupt checkpoints: each is refused, and its error names what is wrong."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.reader import read_checkpoint, read_manifest
from qvla_ros.errors import CheckpointError

ZEROS = "0" * 64
LAYER = "tower.mixed"
GROUPED = "tower.grouped"


class Forgery:
    """A checkpoint taken apart; ``to_bytes`` puts it together again under a true checksum."""

    def __init__(self, original: bytes) -> None:
        start = 8 + int.from_bytes(original[:8], "little")
        self.header: dict[str, Any] = json.loads(original[8:start])
        self.manifest: dict[str, Any] = json.loads(self.header.pop("__metadata__")["qvla"])
        self.data = bytearray(original[start:])
        self.metadata: Any = None

    def to_bytes(self) -> bytes:
        self.manifest.get("integrity", {})["sha256"] = ZEROS
        metadata = self.metadata
        if metadata is None:
            metadata = {"qvla": json.dumps(self.manifest, separators=(",", ":"))}
        text = json.dumps({"__metadata__": metadata, **self.header}).encode()
        unsealed = framed(text) + bytes(self.data)
        return unsealed.replace(ZEROS.encode(), hashlib.sha256(unsealed).hexdigest().encode(), 1)

    def set_bytes(self, name: str, offset: int, value: bytes) -> None:
        begin = self.header[name]["data_offsets"][0] + offset
        self.data[begin : begin + len(value)] = value

    def layer(self, index: int = 0) -> dict[str, Any]:
        return self.manifest["layers"][index]


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def edited(change: Callable[[Forgery], object]) -> Callable[[bytes], bytes]:
    """The corruption that changes a part and leaves everything else true."""

    def corrupt(original: bytes) -> bytes:
        forgery = Forgery(original)
        change(forgery)
        return forgery.to_bytes()

    return corrupt


def entry(key: str, value: object, name: str = f"{LAYER}.segment4.codes") -> object:
    return edited(lambda f: f.header[name].update({key: value}))


def shift(name: str, begin: int, end: int) -> object:
    def change(f: Forgery) -> None:
        offsets = f.header[name]["data_offsets"]
        f.header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return edited(change)


def values(name: str, value: bytes, offset: int = 0, layer: str = LAYER) -> object:
    return edited(lambda f: f.set_bytes(f"{layer}.{name}", offset, value))


def manifest(**fields: object) -> object:
    return edited(lambda f: f.manifest.update(fields))


def metadata(value: object) -> object:
    return edited(lambda f: setattr(f, "metadata", value))


def segment(index: int, layer: int = 0, **fields: object) -> object:
    return edited(lambda f: f.layer(layer)["segments"][index].update(fields))


def layer(index: int = 0, **fields: object) -> object:
    return edited(lambda f: f.layer(index).update(fields))


def int32(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


BF16_NAN, BF16_INF, BF16_ZERO, BF16_MINUS_1 = b"\xc0\x7f", b"\x80\x7f", b"\x00\x00", b"\x80\xbf"

CORRUPTIONS = [
    # the file
    ("an empty file", lambda _: b"", "truncated", "it has 0 bytes"),
    ("half a header length", lambda b: b[:5], "truncated", "it has 5 bytes"),
    ("a header longer than the file", lambda b: b[:200], "truncated", "its header takes"),
    ("the last byte missing", lambda b: b[:-1], "truncated", "its tensors take"),
    ("a byte too many", lambda b: b + b"\0", "trailing_bytes", "1 bytes after its last tensor"),
    ("one flipped bit at the end", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum", "damaged"),
    (
        "one changed letter in the manifest",
        lambda b: b.replace(b"tiny", b"tinz"),
        "checksum",
        "damaged",
    ),
    (
        "a checksum of another file",
        lambda b: b.replace(Forgery(b).manifest["integrity"]["sha256"].encode(), b"a" * 64),
        "checksum",
        "was written with aaaaaaaaaaaa",
    ),
    ("a file of text", lambda _: b"PK\3\4, this is no checkpoint", "header_size", "length is"),
    ("a header length of 0", lambda _: b"\0" * 100, "header_size", "0 bytes"),
    ("a header of petabytes", lambda b: b"\xff" * 8 + b[8:], "header_size", "outside"),
    # the header
    ("a header that is not JSON", lambda _: framed(b"{'a': 1}"), "header_json", "not valid JSON"),
    ("a header that is not UTF-8", lambda _: framed(b'{"\xff": 1}'), "header_json", "utf-8"),
    ("a header that is a list", lambda _: framed(b"[1, 2]"), "header_json", "JSON object"),
    ("a duplicate key", lambda _: framed(b'{"a":1,"a":2}'), "header_json", "'a' stands twice"),
    ("a bottomless header", lambda _: framed(b"[" * 200_000), "header_json", "deeply"),
    ("an entry without a shape", edited(lambda f: f.header["float.count"].pop("shape")),
     "header_entry", "'float.count'"),
    ("an entry with an extra key", entry("note", 1), "header_entry", "exactly dtype"),
    ("a negative shape", entry("shape", [-2, 128]), "header_entry", "at least 0"),
    ("three offsets", entry("data_offsets", [0, 1, 2]), "header_entry", "lists of integers"),
    ("a fractional offset", entry("data_offsets", [0, 1.5]), "header_entry", "lists of integers"),
    ("an unknown dtype", entry("dtype", "F8_E4M3"), "unknown_dtype", "'F8_E4M3'"),
    ("reversed offsets", entry("data_offsets", [300, 44]), "offsets", "data_offsets are"),
    ("offsets of a wrong length", shift(f"{LAYER}.segment4.codes", 0, 1), "offsets", "takes"),
    ("overlapping tensors", shift(f"{LAYER}.segment4.codes", -1, -1), "offsets", "overlaps"),
    ("a hole", shift(f"{LAYER}.segment4.codes", 1, 1), "offsets", "hole"),
    ("a tensor beyond the file", edited(lambda f: f.data.clear()), "truncated", "0 are there"),
    # the manifest
    ("another program's metadata", metadata({"format": "pt"}), "manifest_missing", "qvla quantize"),
    ("a manifest that is not text", metadata({"qvla": {}}), "manifest_missing", "no manifest"),
    ("a manifest that is not JSON", metadata({"qvla": "{]"}), "manifest_json", "the manifest"),
    ("NaN in the manifest", metadata({"qvla": '{"a": NaN}'}), "manifest_json", "NaN"),
    ("a newer schema", manifest(schema_version=3), "schema_version", "update qvla_ros"),
    ("an older schema", manifest(schema_version=1), "schema_version", "quantize the model again"),
    ("a schema version of text", manifest(schema_version="2"), "manifest_field", "schema_version"),
    ("a missing field", edited(lambda f: f.manifest.pop("family")), "manifest_field", "'family'"),
    ("an unknown field", manifest(color="red"), "manifest_field", "unknown field 'color'"),
    ("a field of a wrong type", manifest(model_id=3), "manifest_field", "model_id must be a"),
    ("a quality of text", manifest(quality={"e": "low"}), "manifest_field", "quality.e"),
    ("a fingerprint that is none", manifest(source_fingerprint="x"), "manifest_field", "64"),
    ("column groups of a half", segment(1, group_columns=0.5), "manifest_field", "an integer"),
    ("column groups of another size", segment(1, group_columns=64), "layer_spec", "is 64"),
    ("column groups of 16-bit rows", segment(0, group_columns=128), "layer_spec", "16 bits may"),
    ("column groups in one segment only", segment(1, 2, group_columns=None),
     "layer_spec", "whole rows and of groups"),
    ("an unknown codebook", segment(1, codebook="e2m1"), "layer_spec", "'e2m1'"),
    ("a width of 5 bits", segment(2, bits=5), "layer_spec", "bits is 5"),
    ("activations of 4 bits", layer(activation_bits=4), "layer_spec", "activations of 4 bits"),
    ("activation bits of text", layer(activation_bits="8"), "manifest_field", "activation_bits"),
    ("more stored columns than there are", layer(stored_columns=131),
     "layer_spec", "stores 131 columns of 130"),
    ("no stored column", layer(stored_columns=0), "layer_spec", "stores 0 columns"),
    ("a layer that is named as a parameter", layer(name="float.x"), "layer_spec", "'float.x'"),
    ("a layer without a name", layer(name=""), "layer_spec", "has a name"),
    ("an empty segment", segment(1, rows=0), "layer_spec", "at least one row"),
    ("more rows than the layer has", segment(1, rows=99), "layer_spec", "of only 10"),
    ("unsorted segments", edited(lambda f: f.layer()["segments"].reverse()),
     "layer_spec", "sorted, widest first"),
    ("a layer that stands twice", edited(lambda f: f.manifest["layers"].append(f.layer())),
     "layer_spec", f"'{LAYER}' twice"),
    ("a plan of other layers", edited(lambda f: f.layer().update(rows=11)),
     "plan_mismatch", "but the layers have"),
    # the tensors against the manifest
    ("a layer without its scale", edited(lambda f: rename(f, f"{LAYER}.segment4.scale", "float.s")),
     "tensor_missing", f"'{LAYER}.segment4.scale' is missing"),
    ("a tensor of no layer", edited(lambda f: rename(f, "float.count", "tower.extra")),
     "tensor_unexpected", "'tower.extra' belongs to no layer"),
    ("no input columns", edited(lambda f: rename(f, f"{GROUPED}.input_columns", "float.i")),
     "tensor_missing", f"'{GROUPED}.input_columns' is missing"),
    ("input columns of a complete layer",
     edited(lambda f: rename(f, "float.count", f"{LAYER}.input_columns")),
     "tensor_unexpected", f"'{LAYER}.input_columns' belongs to no layer"),
    ("a scale of rows for groups", entry("shape", [4], f"{GROUPED}.segment3.scale"),
     "tensor_shape", "[2, 2], not [4]"),
    ("codes of a wrong dtype", entry("dtype", "I8"), "tensor_dtype", "torch.uint8"),
    ("codes of a wrong width", entry("shape", [4, 64]), "tensor_shape", "[2, 128], not [4, 64]"),
    ("a flat weight", entry("shape", [260], f"{LAYER}.segment16.weight"),
     "tensor_shape", "[2, 130], not [260]"),
    # the values
    ("a row that stands twice", values("row_order", int32(3) * 2), "row_order", "row 3 twice"),
    ("a row of another layer", values("row_order", int32(10)), "row_order", "outside the 10 rows"),
    ("a negative row", values("row_order", int32(-1)), "row_order", "outside the 10 rows"),
    ("unsorted rows", values("row_order", int32(7) + int32(3)), "row_order", "does not ascend"),
    ("a scale of 0", values("segment4.scale", BF16_ZERO, 2), "scale", "segment4.scale[1] is 0.0"),
    ("a negative scale", values("segment2.scale", BF16_MINUS_1), "scale", "positive"),
    ("a scale of NaN", values("segment8.scale", BF16_NAN), "scale", "is nan"),
    ("an infinite zero", values("segment4.zero", BF16_INF), "zero", "segment4.zero[0] is inf"),
    ("a weight of NaN", values("segment16.weight", BF16_NAN, 6), "weight", "not finite"),
    ("a scale of 0 in a group", values("segment3.scale", BF16_ZERO, 6, GROUPED),
     "scale", "segment3.scale[1, 1] is 0.0"),
    ("a negative input column", values("input_columns", int32(-2), layer=GROUPED),
     "input_columns", "outside the 400 columns"),
    ("an input column of another layer", values("input_columns", int32(400), 4 * 199, GROUPED),
     "input_columns", "outside the 400 columns"),
    ("an input column that stands twice", values("input_columns", int32(2), layer=GROUPED),
     "input_columns", "does not ascend"),
    ("high bits in the padding", values("segment3.codes", b"\x10", 48 + 32 + 8, GROUPED),
     "padding", "column 200"),
    ("codes in the padding", values("segment4.codes", b"\1", 64 + 2), "padding", "column 130"),
]  # fmt: skip


def rename(forgery: Forgery, old: str, new: str) -> None:
    forgery.header[new] = forgery.header.pop(old)


@pytest.mark.parametrize(
    ("corrupt", "fault", "message"),
    [pytest.param(*row[1:], id=row[0].replace(" ", "-")) for row in CORRUPTIONS],
)
def test_a_corrupt_file_is_refused_by_name(
    corrupt: Callable[[bytes], bytes], fault: str, message: str, checkpoint_path: Path
) -> None:
    checkpoint_path.write_bytes(corrupt(checkpoint_path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(checkpoint_path)
    assert caught.value.fault == fault
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{checkpoint_path}: ")


def test_an_unchanged_forgery_is_accepted(checkpoint_path: Path) -> None:
    """So each refusal above is due to its corruption alone."""
    checkpoint_path.write_bytes(edited(lambda _: None)(checkpoint_path.read_bytes()))
    assert read_checkpoint(checkpoint_path).layers


def test_every_fault_of_reading_has_its_corrupt_file() -> None:
    elsewhere = {"missing", "not_a_file", "unreadable", "unwritable", "network"}
    assert {row[2] for row in CORRUPTIONS} == {
        fault.value for fault in CheckpointFault
    } - elsewhere


@pytest.mark.parametrize("read", [read_checkpoint, read_manifest])
def test_a_missing_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such file; make one with") as caught:
        read(tmp_path / "gone")
    assert caught.value.fault == CheckpointFault.MISSING


@pytest.mark.parametrize("read", [read_checkpoint, read_manifest])
def test_a_folder_is_not_a_checkpoint(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file") as caught:
        read(tmp_path)
    assert caught.value.fault == CheckpointFault.NOT_A_FILE


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe")


def test_a_read_error_of_the_system_is_a_checkpoint_error(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qvla_ros.checkpoint.reader.FileIO", fail)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied") as caught:
        read_checkpoint(checkpoint_path)
    assert caught.value.fault == CheckpointFault.UNREADABLE


def test_without_verification_a_changed_byte_passes_but_a_bad_scale_does_not(
    checkpoint_path: Path,
) -> None:
    original = checkpoint_path.read_bytes()
    checkpoint_path.write_bytes(original.replace(b'{"a": 1}', b'{"a": 2}'))
    assert read_checkpoint(checkpoint_path, verify=False).layers
    checkpoint_path.write_bytes(values("segment8.scale", BF16_NAN)(original))
    with pytest.raises(CheckpointError, match="is nan"):
        read_checkpoint(checkpoint_path, verify=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(checkpoint_path: Path, position: float, bit: int) -> None:
    original = checkpoint_path.read_bytes()
    damaged = bytearray(original)
    damaged[int(position * len(damaged))] ^= 1 << bit
    try:
        checkpoint_path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_checkpoint(checkpoint_path)
    finally:
        checkpoint_path.write_bytes(original)


def test_any_shorter_file_is_refused(checkpoint_path: Path) -> None:
    original = checkpoint_path.read_bytes()
    for length in range(0, len(original), 37):
        checkpoint_path.write_bytes(original[:length])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(checkpoint_path)
        assert caught.value.fault == CheckpointFault.TRUNCATED
