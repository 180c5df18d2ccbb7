"""What is wrong with a folder, and whether ``qvla quantize`` says so and writes nothing."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from demo.seven_b_parts import Place, qvla, succeeded


def errors(place: Place) -> dict[str, object]:
    """Every fault of a folder: one clear error, nothing written."""
    pristine = place.work / "pristine"
    succeeded(qvla("synthesize", pristine, "--scale", "tiny", "--unnorm-key", "mine"))
    checked = {}
    for name, (damage, said) in FAULTS.items():
        folder = Path(shutil.copytree(pristine, place.work / "damaged"))
        words = damage(folder)
        out = place.work / "nothing" / "policy.qvla.safetensors"
        out.parent.mkdir()
        ran = qvla("quantize", folder, place.bag, "--bits", 4, "--frames", 2, "--out", out, *words)
        told = [line for line in ran.error.splitlines() if line.startswith("qvla quantize:")]
        checked[name] = {
            "refused": ran.code == 2 and len(told) == 1 and said in ran.error,
            "nothing_written": not any(out.parent.iterdir()),
            "says": told[0].replace(str(place.work), "…")[:200] if told else ran.error[-200:],
        }
        shutil.rmtree(folder)
        shutil.rmtree(out.parent)
    return {"errors_checked": checked}


def _last_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[-1]


def _truncate(folder: Path) -> Sequence[str]:
    shard = _last_shard(folder)
    with shard.open("rb+") as file:
        file.truncate(shard.stat().st_size - 100)
    return ()


def _garble_header(folder: Path) -> Sequence[str]:
    with _last_shard(folder).open("rb+") as file:
        file.seek(12)
        file.write(b"\0\0\0\0")
    return ()


def _lose_head(folder: Path) -> Sequence[str]:
    next(folder.glob("action_head--*.pt")).unlink()
    next(folder.glob("proprio_projector--*.pt")).rename(
        folder / "proprio_projector--1_checkpoint.pt"
    )
    return ()


def _other_key(folder: Path) -> Sequence[str]:
    return ("--unnorm-key", "another")


def _unknown_tensor(folder: Path) -> Sequence[str]:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["lora_A.weight"] = _last_shard(folder).name
    index.write_text(json.dumps(value))
    return ()


FAULTS: dict[str, tuple[Callable[[Path], Sequence[str]], str]] = {
    "truncated shard": (_truncate, "shard"),
    "corrupt shard": (_garble_header, "shard"),
    "missing head": (_lose_head, "action_head"),
    "wrong statistics key": (_other_key, "another"),
    "unknown tensor": (_unknown_tensor, "lora_A.weight"),
}
"""What is done to a folder, giving further arguments, and a word that the error must have."""
