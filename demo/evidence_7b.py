"""``make evidence-7b``: everything that is claimed of 7B models, measured anew.

    python -m demo.evidence_7b --out evidence/7b.json

Under half an hour on two idle cores, 24 GB of memory and 60 GB of disk, with random weights of the
released sizes and layout. ``--full`` quantizes the whole 7B model from a score table as well (an
hour in all); ``--quick`` runs everything on tiny models, to try it. A part that fails is a fault,
and the rest goes on.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from demo.provenance import evidence_file, provenance, write_evidence
from demo.seven_b_errors import errors
from demo.seven_b_parts import ROOT, Place, Scale, families, oracles, whole_model, whole_quantize
from demo.seven_b_width import full_width
from qvla_ros.errors import QvlaError

QUICK = Scale(full="tiny", wide="tiny", wide_layers=2, frames=2, probes=2)
PARTS: dict[str, Callable[[Place], dict[str, object]]] = {
    "errors": errors,
    "families": families,
    "oracles": oracles,
    "full width": full_width,
    "whole model": whole_model,
}
FULL = {"whole quantize": whole_quantize}
"""Only when asked for, after the whole model, whose folder and table it uses."""

INSPECT_S, INSPECT_MB = 10.0, 500.0
FULL_WIDTH_GB, PACKED_RATIO, LOAD_RATIO = 8.0, 0.292, 1.3
INSPECTED = {
    "parameters": 7_541_237_184,
    "targets": 430,
    "live_targets": 422,
    "dead_tensors": 43,
    "parameters_by_part": {
        "language_model": 6_738_939_904,
        "projector": 71_385_600,
        "vision_backbone.featurizer": 303_230_976,
        "vision_backbone.fused_featurizer": 427_680_704,
    },
    "missing": [],
    "unknown": [],
    "misshapen": [],
}
"""Of the released folders, which the synthetic one must equal."""

_FAILURES = (
    QvlaError,
    ArithmeticError,
    LookupError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    ElementTree.ParseError,
    subprocess.SubprocessError,
)
"""Of one part; the figures of the others are kept."""

_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def measure(place: Place, names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """All figures, and the parts that failed with their reasons."""
    found: dict[str, Any] = {}
    failed: list[str] = []
    seconds: dict[str, int] = {}
    for name in names:
        print(f"evidence-7b: {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            found |= (PARTS | FULL)[name](place)
        except _FAILURES as error:
            failed.append(f"{name}: {type(error).__name__}: {error}".replace(str(place.work), "…"))
        seconds[name] = round(time.monotonic() - began)
    return found | {"seconds": seconds}, failed


def faults(found: dict[str, Any], real_size: bool) -> list[str]:
    """Which claims these figures do not bear; sizes count at real size only."""
    wrong = [
        *_oracle_faults(found.get("oracles")),
        *(
            f"the fault {name!r} is not refused as it should be"
            for name, one in found.get("errors_checked", {}).items()
            if not (one["refused"] and one["nothing_written"])
        ),
        *(
            f"the action error of the family {name} is {error}"
            for name, error in found.get("families_action_error", {}).items()
            if not math.isfinite(error)
        ),
    ]
    return wrong + _size_faults(found) if real_size else wrong


def _oracle_faults(oracles: dict[str, Any] | None) -> list[str]:
    if oracles is None:
        return []
    wrong = [f"{oracles[how]} oracles {how}" for how in ("failed", "skipped") if oracles[how]]
    return wrong if oracles["passed"] else [*wrong, "no oracle passed"]


def _size_faults(found: dict[str, Any]) -> list[str]:
    limits = {
        "inspect_seconds": INSPECT_S,
        "inspect_peak_mb": INSPECT_MB,
        "full_width_peak_gb": FULL_WIDTH_GB,
        "packed_ratio": PACKED_RATIO,
        "load_peak_over_file": LOAD_RATIO,
    }
    wrong = [
        f"{key} is {found[key]:.3g}, above {limit:g}"
        for key, limit in limits.items()
        if key in found and not found[key] <= limit
    ]
    share = found.get("whole_quantize", {}).get("share_of_bf16", 0.0)
    if not share <= PACKED_RATIO:
        wrong.append(f"the quantized whole model is {share:.3g} of its BF16 bytes")
    facts = found.get("inspect")
    return wrong + [
        f"inspect says {key} {facts.get(key)}, not {value}"
        for key, value in INSPECTED.items()
        if facts is not None and facts.get(key) != value
    ]


def table_text(found: dict[str, Any]) -> str:
    """What is printed."""
    rows: list[tuple[str, object]] = []
    if "oracles" in found:
        rows.append(
            ("oracles passed", f"{found['oracles']['passed']}/{found['oracles']['tests']}")
        )
    for key, unit in (
        ("inspect_seconds", "s"),
        ("inspect_peak_mb", "MB"),
        ("full_width_peak_gb", "GB"),
        ("packed_average_bits", "bits"),
        ("packed_ratio", "of the BF16 bytes"),
        ("packed_peak_gb", "GB"),
        ("load_peak_over_file", "times the file"),
    ):
        if key in found:
            rows.append((key, f"{found[key]:.3f} {unit}"))
    if "plan_dry_run" in found:
        plan = found["plan_dry_run"]
        rows.append(("plan --dry-run", f"{plan['seconds']:.0f} s, {plan['peak_gb']:.2f} GB"))
    if "full_width_peaks_gb" in found:
        rows += _full_width_rows(found)
    for name, one in found.get("per_layer_seconds", {}).items():
        rows.append(
            (
                f"{name}, seconds",
                f"{one['llama_layer']:.1f} a Llama layer, {one['vision_towers']:.0f} both towers, "
                f"{one['extrapolated_32_layers'] / 60:.0f} min for 32 layers (extrapolated)",
            )
        )
    if "whole_quantize" in found:
        whole = found["whole_quantize"]
        rows.append(
            ("quantize, whole", f"{whole['seconds'] / 60:.0f} min, {whole['peak_gb']:.1f} GB")
        )
    checked = found.get("errors_checked", {})
    good = sum(one["refused"] and one["nothing_written"] for one in checked.values())
    rows.append(("faults refused", f"{good}/{len(checked)}"))
    rows.append(("seconds", found["seconds"]))
    return "\n".join(f"{name:<24} {value}" for name, value in rows)


def _full_width_rows(found: dict[str, Any]) -> list[tuple[str, object]]:
    layers, frames, probes = (
        found[f"full_width_{name}"] for name in ("llama_layers", "frames", "probes")
    )
    peaks, seconds = found["full_width_peaks_gb"], found["full_width_seconds"]
    more = found["extrapolated_32_layers_gb"]
    return [
        ("full width is", f"{layers} Llama layers, {frames} frame(s), {probes} probe(s)"),
        *(
            (
                f"{name}, full width",
                f"{seconds[name]:.0f} s, {peak:.2f} GB"
                + (f", {more[name]:.1f} GB for 32 layers (extrapolated)" if name in more else ""),
            )
            for name, peak in peaks.items()
        ),
    ]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what is claimed of 7B models.")
    parser.add_argument("--out", type=Path, help="default: evidence/7b.json")
    parser.add_argument("--work", type=Path, help="a new folder, for 60 GB; removed at the end")
    parser.add_argument("--bag", type=Path, default=ROOT / "demo" / "bags" / "calibration_0")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layers", type=int, default=2, help="Llama layers at full width (2)")
    parser.add_argument("--frames", type=int, default=1, help="calibration frames (1)")
    parser.add_argument("--probes", type=int, default=1, help="backward passes a frame (1)")
    parser.add_argument("--full", action="store_true", help="quantize the whole 7B as well")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the command")
    options = parser.parse_args()
    scale = Scale(
        wide_layers=options.layers,
        frames=options.frames,
        probes=options.probes,
    )
    out = options.out or evidence_file("7b.json", options.quick)
    work = options.work or ROOT / "demo_output" / f"evidence_7b_{os.getpid()}"
    work.mkdir(parents=True)
    place = Place(work, options.bag.resolve(), QUICK if options.quick else scale)
    about = provenance(_PACKAGES)
    try:
        found, failed = measure(place, [*options.parts, *(FULL if options.full else ())])
    finally:
        shutil.rmtree(work)
    wrong = failed + faults(found, not options.quick)
    found |= {"quick": options.quick, "faults": wrong, **about}
    write_evidence(out, found)
    print(table_text(found))
    for text in wrong:
        print(f"evidence-7b: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
