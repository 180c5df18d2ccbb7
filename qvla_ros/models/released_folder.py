"""Read a released OpenVLA-OFT folder, strictly: every key and shape is checked, nothing skipped."""

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

_REFUSED = {
    "film": ("vision_backbone--*.pt", "FiLM-conditioned vision backbones are not supported"),
    "diffusion": ("noisy_action_projector--*.pt", "diffusion action heads are not supported"),
}


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """The parsed small files of a model folder.

    Attributes:
        path: The folder.
        config: ``config.json``.
        preprocessor: ``preprocessor_config.json``.
        statistics: ``dataset_statistics.json`` (or ``norm_stats`` of ``config.json``).
        tokenizer_json: Text of ``tokenizer.json``.
    """

    path: Path
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
    config = read_json(path / "config.json")
    if config.get("model_type") != "openvla":
        raise UnsupportedModelError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, not 'openvla'"
        )
    for pattern, reason in _REFUSED.values():
        for found in path.glob(pattern):
            raise UnsupportedModelError(f"{found}: {reason}")
    statistics_file = path / "dataset_statistics.json"
    return SmallFiles(
        path=path,
        config=config,
        preprocessor=read_json(path / "preprocessor_config.json"),
        statistics=(
            read_json(statistics_file)
            if statistics_file.exists()
            else config.get("norm_stats", {})
        ),
        tokenizer_json=_read_text(path / "tokenizer.json"),
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
    with _open_shard(single) as shard:
        return dict.fromkeys(shard.keys(), single)


def _open_shard(path: Path):  # type: ignore[no-untyped-def]  # safetensors has no stub for it
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UnsupportedModelError(f"cannot read the shard {path}: {error}") from error


def load_shards(
    shard_of: dict[str, Path], expected: dict[str, Shape], drop: set[str]
) -> dict[str, Tensor]:
    """Load every expected tensor but the dropped ones, in the dtype of the file.

    Raises:
        UnsupportedModelError: A tensor is missing, unknown, or of another shape; a shard is bad.
    """
    unknown = sorted(shard_of.keys() - expected.keys())
    missing = sorted(expected.keys() - shard_of.keys())
    for names, verdict in ((unknown, "unknown"), (missing, "missing")):
        if names:
            raise UnsupportedModelError(
                f"{next(iter(shard_of.values())).parent}: {len(names)} {verdict} tensor(s), first {names[0]!r}"
            )
    tensors: dict[str, Tensor] = {}
    for path in sorted(set(shard_of.values())):
        mine = [name for name, shard in shard_of.items() if shard == path]
        with _open_shard(path) as shard:
            present = set(shard.keys())
            for name in sorted(present - set(mine)):
                raise UnsupportedModelError(
                    f"{path} holds {name!r}, which the index does not name"
                )
            for name in mine:
                if name not in present:
                    raise UnsupportedModelError(f"{path} lacks {name!r}, which the index promises")
                shape = tuple(shard.get_slice(name).get_shape())
                if shape != expected[name]:
                    raise UnsupportedModelError(
                        f"{path}: {name!r} has shape {shape}, config.json implies {expected[name]}"
                    )
                if name not in drop:
                    tensors[name] = shard.get_tensor(name)
    return tensors


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
