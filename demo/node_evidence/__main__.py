"""``make evidence-node``: measure what is promised of the node, print it, and write it down.

python -m demo.node_evidence --out evidence/node.json
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from demo.node_evidence.dds_soak import RATE_HZ, soak_over_dds
from demo.node_evidence.lifecycle_cycles import run_cycles
from demo.node_evidence.live_parity import live_parity
from demo.node_evidence.overhead import measure_overhead
from demo.node_evidence.processes import ROOT
from demo.node_evidence.simulated_soak import soak
from qvla_ros.atomic_file import atomic_file
from qvla_ros.evaluate.machine import describe_machine

BAGS = ROOT / "demo" / "bags"
INPUT_LIMITS = (
    "stale_observation",
    "future_stamp",
    "out_of_order",
    "out_of_step_camera_wrist",
    "out_of_step_state",
    "bad_message",
    "non_finite",
    "out_of_limits",
    "expired",
    "clock_jumped_back",
)
OVERHEAD_LIMIT_MS = 2.0
GROWTH_LIMIT_MB = 8.0


def measure(checkpoint: Path, quick: bool) -> dict:
    """All figures; ``quick`` does a tenth of the work, to see that everything runs."""
    share = 0.1 if quick else 1.0
    overhead = measure_overhead(120 * share)
    _say(f"overhead p99 {overhead.percentile(99):.2f} ms over {overhead.frames} frames")
    simulated = soak(round(120_000 * share))
    _say(f"simulated soak: {simulated.fault_count} faults, unsafe {simulated.unsafe}")
    dds = soak_over_dds(240 * share)
    _say(f"soak over DDS: {dds.fault_count} faults, unsafe {dds.unsafe}")
    cycles = run_cycles(round(100 * share))
    _say(f"lifecycle: {cycles.completed} cycles")
    live = live_parity(
        checkpoint, sorted(BAGS.glob("calibration_*")), sorted(BAGS.glob("heldout_*"))
    )
    _say(f"parity: {live.parity}")
    growth = (
        simulated.memory_growth_bytes,
        dds.memory_growth_bytes,
        cycles.memory_growth_bytes,
    )
    return {
        "faults_injected": simulated.fault_count + dds.fault_count,
        "faults": {
            "simulated_time": simulated.faults,
            "over_dds": dds.faults,
            "simulated_s": simulated.simulated_s,
            "dds_frames_per_s": RATE_HZ,
        },
        "chunks_looked_at": simulated.chunks + dds.chunks,
        "unsafe_chunks": sum(simulated.unsafe.values()) + sum(dds.unsafe.values()),
        "unsafe": {"simulated_time": simulated.unsafe, "over_dds": dds.unsafe},
        "memory_growth_mb": round(max(growth) / 1e6, 3),
        "memory_growth_mb_by_part": {
            part: round(size / 1e6, 3)
            for part, size in zip(("simulated", "dds", "lifecycle"), growth, strict=True)
        },
        "false_positive_rate": {
            "actions": live.false_positive_rate,
            "inputs": {why: live.drops.get(why, 0) / live.samples for why in INPUT_LIMITS},
        },
        "clean_samples": live.samples,
        "clean_trips": live.drops,
        "overhead_ms_p50": round(overhead.percentile(50), 3),
        "overhead_ms_p99": round(overhead.percentile(99), 3),
        "overhead_chunks": len(overhead.overhead_ms),
        "overhead_frames": overhead.frames,
        "parity_chunks": live.parity.chunks,
        "parity_mismatches": live.parity.mismatches + live.parity.unmatched,
        "parity_greatest_difference": live.parity.greatest_difference,
        "lifecycle_cycles": cycles.completed,
        "lifecycle_cycles_asked": round(100 * share),
    }


def broken_promises(figures: dict) -> list[str]:
    """What the figures must not show."""
    checks = {
        "an unsafe chunk was sent": figures["unsafe_chunks"] > 0,
        "a chunk differs from its replay": figures["parity_mismatches"] > 0,
        "clean recordings tripped a limit": bool(figures["clean_trips"]),
        "a lifecycle cycle failed": figures["lifecycle_cycles"]
        < figures["lifecycle_cycles_asked"],
        f"memory grew by more than {GROWTH_LIMIT_MB:g} MB": figures["memory_growth_mb"]
        > GROWTH_LIMIT_MB,
        f"the node costs more than {OVERHEAD_LIMIT_MS:g} ms": figures["overhead_ms_p99"]
        > OVERHEAD_LIMIT_MS,
        "fewer than 99 % of the frames were answered": figures["overhead_chunks"]
        < 0.99 * figures["overhead_frames"],
    }
    return [text for text, broken in checks.items() if broken]


def provenance() -> dict:
    """Where and when."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    versions = {name: metadata.version(name) for name in ("numpy", "torch", "rosbags")}
    return {
        "machine": describe_machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), **versions},
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure what is promised of the node.")
    parser.add_argument("--out", type=Path, default=ROOT / "evidence" / "node.json")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "demo_output" / "policy.qvla.safetensors"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    arguments = parser.parse_args()
    began = time.monotonic()
    figures = measure(arguments.checkpoint, arguments.quick)
    figures["seconds"] = round(time.monotonic() - began)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.out) as file:
        file.write(f"{json.dumps({**provenance(), **figures}, indent=2)}\n".encode())
    for key, value in figures.items():
        if not isinstance(value, dict):
            print(f"{key:<32}{value}")
    print(f"\n{arguments.out}")
    broken = broken_promises(figures)
    for text in broken:
        print(f"evidence-node: {text}", file=sys.stderr)
    return 1 if broken else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
