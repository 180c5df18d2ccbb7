"""Read a released OpenVLA folder, strictly: every key and shape is checked, nothing skipped."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only the error: files are read with weights_only

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.released_layout import Shape

SIDE_FILES = ("action_head", "proprio_projector")
"""Stems of the files that OpenVLA-OFT keeps beside its shards."""

_SHARDS = "model*.safetensors"
_FLOATS = ("BF16", "F16", "F32")
_REFUSED = {
    "film": ("vision_backbone--*.pt", "FiLM-conditioned vision backbones are not supported"),
    "diffusion": ("noisy_action_projector--*.pt", "diffusion action heads are not supported"),
}


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """The parsed small files of a model folder.

    Attributes:
        path: The folder.
        family: ``"openvla_oft"`` or ``"openvla"``, by what the folder holds.
        config: ``config.json``.
        preprocessor: ``preprocessor_config.json``.
        statistics: ``dataset_statistics.json`` (or ``norm_stats`` of ``config.json``).
        tokenizer_json: Text of ``tokenizer.json``.
    """

    path: Path
    family: str
    config: dict
    preprocessor: dict
    statistics: dict
    tokenizer_json: str


def open_small_files(path: Path) -> SmallFiles:
    """Parse a model folder without reading tensors.

    Raises:
        UnsupportedModelError: The folder or one of its files is missing, or not of this family.
    """
    if not path.is_dir():
        raise UnsupportedModelError(f"{path} is not a folder with a model in it")
    _refuse_lora_alone(path)
    config = read_json(path / "config.json")
    if config.get("model_type") != "openvla":
        raise UnsupportedModelError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, not 'openvla'"
        )
    for pattern, reason in _REFUSED.values():
        for found in path.glob(pattern):
            raise UnsupportedModelError(f"{found}: {reason}")
    return SmallFiles(
        path=path,
        family=_family(path, config),
        config=config,
        preprocessor=read_json(path / "preprocessor_config.json"),
        statistics=_statistics(path, config),
        tokenizer_json=_read_text(path / "tokenizer.json"),
    )


def _statistics(path: Path, config: dict) -> dict:
    file = path / "dataset_statistics.json"
    if file.exists():
        return read_json(file)
    found = config.get("norm_stats")
    if found is not None and not isinstance(found, dict):
        raise UnsupportedModelError(f"{path / 'config.json'}: norm_stats must be an object")
    return found or {}


def _refuse_lora_alone(path: Path) -> None:
    adapters = [one for one in ("adapter_config.json", "lora_adapter") if (path / one).exists()]
    if adapters and not list(path.glob(_SHARDS)):
        raise UnsupportedModelError(
            f"{path} holds a LoRA adapter ({adapters[0]}) without the model that it changes: "
            "merge it into the base model first"
        )


def _family(path: Path, config: dict) -> str:
    """An action head makes it OFT; so does a state projector, whose head is then missed."""
    if any(list(path.glob(f"{stem}--*checkpoint.pt")) for stem in SIDE_FILES):
        return "openvla_oft"
    if config.keys() & {"n_action_bins", "norm_stats"}:
        return "openvla"
    raise UnsupportedModelError(
        f"{path} has no action_head--*checkpoint.pt (as OpenVLA-OFT has) and its config.json "
        "neither n_action_bins nor norm_stats (as OpenVLA has): it is of no family that is known"
    )


def read_json(path: Path) -> dict:
    """Parse a JSON object.

    Raises:
        UnsupportedModelError: The file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path} does not hold a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error


def find_shards(path: Path) -> dict[str, Path]:
    """Tensor name to the shard that holds it.

    Raises:
        UnsupportedModelError: The folder has no shards, or its index is not one.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UnsupportedModelError(f"{index} has no weight_map")
        for name, shard in names.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise UnsupportedModelError(
                    f"{index}: the shard of {name!r} must be a file of this folder, not {shard!r}"
                )
        return {name: path / shard for name, shard in names.items()}
    single = path / "model.safetensors"
    if not single.exists():
        raise UnsupportedModelError(
            f"{path} has neither model.safetensors.index.json nor model.safetensors "
            "(a LoRA-only folder must be merged first)"
        )
    with open_shard(single) as shard:
        return dict.fromkeys(shard.keys(), single)


def open_shard(path: Path):  # type: ignore[no-untyped-def]  # safetensors has no stub for it
    """Open a shard; its header is read, its tensors when they are asked for.

    Raises:
        UnsupportedModelError: It cannot be read, its header is corrupt, or its end is missing.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UnsupportedModelError(f"cannot read the shard {path}: {error}") from error


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header of a shard says of one tensor.

    Attributes:
        shard: The file.
        dtype: As safetensors calls it, e.g. ``"BF16"``.
        shape: As stored.
    """

    shard: Path
    dtype: str
    shape: Shape


def read_headers(shard_of: dict[str, Path]) -> dict[str, StoredTensor]:
    """Every tensor that the index names, by the headers of the shards; no tensor is read.

    Raises:
        UnsupportedModelError: A shard is bad, or does not hold what the index says, or a tensor
            is not of floating point.
    """
    stored: dict[str, StoredTensor] = {}
    for path in sorted(set(shard_of.values())):
        mine = {name for name, shard in shard_of.items() if shard == path}
        with open_shard(path) as shard:
            present = set(shard.keys())
            for name in sorted(present - mine):
                raise UnsupportedModelError(
                    f"{path} holds {name!r}, which the index does not name"
                )
            for name in sorted(mine - present):
                raise UnsupportedModelError(f"{path} lacks {name!r}, which the index promises")
            for name in mine:
                entry = shard.get_slice(name)
                stored[name] = StoredTensor(path, entry.get_dtype(), tuple(entry.get_shape()))
                if stored[name].dtype not in _FLOATS:
                    raise UnsupportedModelError(
                        f"{path}: {name!r} is stored as {stored[name].dtype}, not as one of "
                        f"{', '.join(_FLOATS)}: a quantized folder cannot be read"
                    )
    return stored


def require_tensors(shard_of: dict[str, Path], expected: dict[str, Shape]) -> None:
    """Check by the headers that the shards hold exactly the expected tensors.

    Raises:
        UnsupportedModelError: A tensor is missing, unknown, or of another shape; a shard is bad.
    """
    unknown = sorted(shard_of.keys() - expected.keys())
    missing = sorted(expected.keys() - shard_of.keys())
    for names, verdict in ((unknown, "unknown"), (missing, "missing")):
        if names:
            raise UnsupportedModelError(
                f"{next(iter(shard_of.values())).parent}: {len(names)} {verdict} tensor(s), "
                f"first {names[0]!r}"
            )
    for name, entry in read_headers(shard_of).items():
        if entry.shape != expected[name]:
            raise UnsupportedModelError(
                f"{entry.shard}: {name!r} has shape {entry.shape}, config.json implies "
                f"{expected[name]}"
            )


def load_side_file(folder: Path, stem: str) -> dict[str, Tensor]:
    """Load ``<stem>--*checkpoint.pt``, with the ``module.`` prefix of its keys taken off.

    Raises:
        UnsupportedModelError: There is not exactly one such file, or it is not a tensor table.
    """
    found = sorted(folder.glob(f"{stem}--*checkpoint.pt"))
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{folder} must hold exactly one {stem}--*checkpoint.pt, not {len(found)}"
        )
    try:
        table = torch.load(found[0], map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, UnpicklingError) as error:
        raise UnsupportedModelError(f"cannot read {found[0]}: {error}") from error
    if not isinstance(table, dict) or not all(torch.is_tensor(t) for t in table.values()):
        raise UnsupportedModelError(f"{found[0]} is not a table of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in table.items()}


def fingerprint(path: Path) -> str:
    """SHA-256 over the names and contents of the files that decide what the model computes."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".json", ".safetensors", ".pt") and file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
