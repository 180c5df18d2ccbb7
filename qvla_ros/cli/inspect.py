"""``qvla inspect``: what is in a model folder or in a packed checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.plan import plan_facts

if TYPE_CHECKING:
    from qvla_ros.checkpoint.manifest import Manifest

HELP = "print what a model folder, a packed checkpoint, a plan or a sensitivity table holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", type=Path, help="model folder, or a file that qvla wrote")
    parser.add_argument(
        "--kernels", action="store_true", help="which kernel would multiply here, and why"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    facts = _folder_facts(arguments.path) if arguments.path.is_dir() else _facts(arguments.path)
    if arguments.kernels:
        facts["kernels"] = _kernel_facts()
    print_facts(facts, arguments.json)
    return 0


def _facts(path: Path) -> dict[str, object]:
    from qvla_ros.checkpoint.reader import read_manifest
    from qvla_ros.quantize.storage import PLAN, TABLE, kind_of, load_plan, load_table

    kind = kind_of(path) if path.is_file() else None
    if kind == PLAN:
        plan = load_plan(path)
        fingerprint = {"model_fingerprint": plan.model_fingerprint}
        return {
            "kind": "bit plan",
            **plan_facts(plan),
            "budget": plan.budget.to_json(),
            **fingerprint,
        }
    if kind == TABLE:
        table = load_table(path)
        return {
            "kind": "sensitivity table",
            "layers": len(table.layers),
            "rows": sum(layer.rows for layer in table.layers),
            "probes": table.probes,
            "seed": table.seed,
            "model_fingerprint": table.model_fingerprint,
        }
    return _checkpoint_facts(path, read_manifest(path))


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
    for bits in (16, 8):
        choice = select_kernel(device, dtype, activation_bits=bits)
        facts[f"{bits}-bit activations"] = f"{choice.name}: {choice.reason}"
    return facts
