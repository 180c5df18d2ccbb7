"""The parts of ``make evidence-node``; each runs in a process of its own, with a time limit.

python -m demo.node_evidence.parts NAME --out FILE [--checkpoint C] [--share 0.1]
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.demo_bags import demo_bags

CYCLES, SIMULATED_FAULTS, SOAK_S, OVERHEAD_S = 100, 120_000, 240.0, 120.0
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


@dataclass(frozen=True, slots=True)
class Part:
    """One of the measurements.

    Attributes:
        measure: From the demo's checkpoint and the share of the work to the figures.
        limit_s: A part that takes longer is ended.
    """

    measure: Callable[[Path, float], dict[str, object]]
    limit_s: int


def overhead(checkpoint: Path, share: float) -> dict[str, object]:
    """What the node costs."""
    from demo.node_evidence.overhead import measure_overhead

    return measure_overhead(OVERHEAD_S * share).to_json()


def simulated(checkpoint: Path, share: float) -> dict[str, object]:
    """Faults on simulated time, by strategy."""
    from demo.node_evidence.simulated_soak import soak
    from demo.node_evidence.soak_result import soaks_to_json
    from qvla_ros.node.parameters import STRATEGIES

    count = round(SIMULATED_FAULTS * share / len(STRATEGIES))
    return soaks_to_json({strategy: soak(count, strategy) for strategy in STRATEGIES})


def over_dds(checkpoint: Path, share: float) -> dict[str, object]:
    """Faults over DDS in real time, by strategy."""
    from demo.node_evidence.dds_soak import RATE_HZ, soak_over_dds
    from demo.node_evidence.soak_result import soaks_to_json
    from qvla_ros.node.parameters import STRATEGIES

    duration_s = SOAK_S * share / len(STRATEGIES)
    soaks = {strategy: soak_over_dds(duration_s, strategy) for strategy in STRATEGIES}
    return soaks_to_json(soaks) | {"frames_per_s": RATE_HZ}


def lifecycle(checkpoint: Path, share: float) -> dict[str, object]:
    """Configure, activate, serve, deactivate, clean up."""
    from demo.node_evidence.lifecycle_cycles import run_cycles

    asked = round(CYCLES * share)
    cycles = run_cycles(asked)
    return {
        "lifecycle_cycles": cycles.completed,
        "lifecycle_cycles_asked": asked,
        "memory_growth_mb": cycles.memory_growth_bytes / 1e6,
    }


def parity(checkpoint: Path, share: float) -> dict[str, object]:
    """The demo's bags live and replayed, by strategy; what they tripped; a policy's processing."""
    from demo.node_evidence.live_parity import live_parity
    from demo.node_evidence.overhead import processing_ms

    played = demo_bags("heldout")
    live = live_parity(checkpoint, demo_bags("calibration"), played if share == 1 else played[:1])
    strategies = live.parity.values()
    return processing_ms(checkpoint) | {
        "parity_chunks": sum(one.chunks for one in strategies),
        "parity_mismatches": sum(one.mismatches + one.unmatched for one in strategies),
        "parity_unknown": sum(one.unknown for one in strategies),
        "parity_greatest_difference": max(one.greatest_difference for one in strategies),
        "parity_chunks_by_strategy": {name: one.chunks for name, one in live.parity.items()},
        "parity_judged_by_strategy": {
            name: one.chunks - one.unmatched - one.unknown for name, one in live.parity.items()
        },
        "false_positive_rate": {
            "actions": live.limits["false_positive_rate"],
            "inputs": {why: live.drops.get(why, 0) / live.samples for why in INPUT_LIMITS},
        },
        "false_positive_chunks": live.limits["provenance"]["heldout_chunks"],
        "false_positive_refused": live.limits["provenance"]["heldout_refused"],
        "clean_samples": live.samples,
        "clean_trips": live.drops,
    }


def fault_table(checkpoint: Path, share: float) -> dict[str, object]:
    """The tests of the node over DDS, by the rows of the documentation's fault table."""
    from demo.node_evidence.fault_table import run_fault_table

    return run_fault_table()


def package(checkpoint: Path, share: float) -> dict[str, object]:
    """``colcon build`` and ``colcon test`` in a fresh folder."""
    from demo.node_evidence.colcon_run import build_and_test

    return build_and_test()


PARTS = {
    "overhead": Part(overhead, 300),
    "simulated": Part(simulated, 420),
    "over_dds": Part(over_dds, 420),
    "lifecycle": Part(lifecycle, 300),
    "parity": Part(parity, 420),
    "fault_table": Part(fault_table, 720),
    "package": Part(package, 300),
}
"""In the order of measuring: time first, while nothing else has run."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure one part.")
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the work")
    options = parser.parse_args()
    found = PARTS[options.name].measure(options.checkpoint, options.share)
    options.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
