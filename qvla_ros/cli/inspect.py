"""``qvla inspect``: what is in a model folder or in a packed checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.facts import print_facts
from qvla_ros.cli.kernel_facts import kernel_facts
from qvla_ros.cli.plan import plan_facts

if TYPE_CHECKING:
    from qvla_ros.checkpoint.manifest import Manifest

HELP = "print what a model folder, a packed checkpoint, a plan or a sensitivity table holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", type=Path, help="model folder, or a file that qvla wrote")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="which kernel would multiply each layer here, and why",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    facts = _folder_facts(arguments.path) if arguments.path.is_dir() else _facts(arguments.path)
    if arguments.kernels:
        facts["kernels"] = kernel_facts(_manifest(arguments.path, facts))
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
    from dataclasses import asdict

    from qvla_ros.models.folder_survey import survey_folder

    survey = survey_folder(path)
    size = f"{survey.parameters / 1e9:.2f} G parameters, {survey.bf16_bytes / 1e9:.2f} GB in BF16"
    lists = {"missing", "unknown", "misshapen", "statistics"}
    facts = {name: list(v) if name in lists else v for name, v in asdict(survey).items()}
    return {"kind": "model folder", "size": size, **facts}


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


def _manifest(path: Path, facts: dict[str, object]) -> "Manifest | None":
    from qvla_ros.checkpoint.reader import read_manifest

    return read_manifest(path) if facts["kind"] == "packed checkpoint" else None
