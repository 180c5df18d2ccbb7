"""``qvla inspect``: what is in a model folder or in a packed checkpoint."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvla_ros.checkpoint.manifest import Manifest

HELP = "print what a model folder or a packed checkpoint holds, without loading its weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", type=Path, help="model folder, or packed checkpoint")
    parser.add_argument(
        "--kernels", action="store_true", help="which kernel would multiply here, and why"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from qvla_ros.checkpoint.reader import read_manifest

    path = arguments.path
    facts = _folder_facts(path) if path.is_dir() else _checkpoint_facts(path, read_manifest(path))
    if arguments.kernels:
        facts["kernels"] = _kernel_facts()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0


def _folder_facts(path: Path) -> dict[str, object]:
    from qvla_ros.models.released_folder import find_shards, open_small_files
    from qvla_ros.models.released_layout import (
        dead_tensors,
        expected_tensors,
        is_target,
        read_llama,
        read_towers,
    )

    small = open_small_files(path)
    towers, llama = read_towers(small.config), read_llama(small.config)
    shapes = expected_tensors(towers, llama)
    dead = dead_tensors(towers)
    targets = [name for name in shapes if is_target(name)]
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        part = ".".join(name.split(".")[:2]) if name.startswith("vision") else name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + _count(shape)
    present = find_shards(path)
    return {
        "kind": "model folder",
        "family": "openvla_oft" if any(path.glob("action_head--*.pt")) else "openvla",
        "parameters": sum(map(_count, shapes.values())),
        "bf16_bytes": 2 * sum(map(_count, shapes.values())),
        "targets": len(targets),
        "live_targets": len([name for name in targets if name not in dead]),
        "dead_tensors": len(dead),
        "missing_tensors": len(shapes.keys() - present.keys()),
        "unknown_tensors": len(present.keys() - shapes.keys()),
        "parameters_by_part": sizes,
        "statistics": sorted(small.statistics),
    }


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _checkpoint_facts(path: Path, manifest: "Manifest") -> dict[str, object]:
    return {
        "kind": "packed checkpoint",
        "family": manifest.family,
        "model": manifest.model_id,
        "sha256": manifest.sha256,
        "file_bytes": path.stat().st_size,
        "layers": len(manifest.layers),
        "average_bits_per_weight": round(manifest.plan.average_bits_per_weight, 4),
        "rows_by_width": {str(bits): n for bits, n in manifest.plan.bit_histogram.items()},
        "budget": dict(manifest.plan.budget),
        "quality": dict(manifest.quality),
        "created_by": manifest.created_by,
    }


def _kernel_facts() -> dict[str, str]:
    import torch

    from qvla_ros.kernels.selection import select_kernel
    from qvla_ros.policy.policy import default_compute_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = default_compute_dtype()
    facts = {}
    for rows in (1, 256):
        choice = select_kernel(device, dtype, rows)
        facts[f"{device.type} {dtype}, {rows} token(s)"] = f"{choice.name}: {choice.reason}"
    return facts


def _print(facts: dict[str, object], indent: str = "") -> None:
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            _print(value, indent + "  ")
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
            print(f"{indent}{key:<26} {text}")
