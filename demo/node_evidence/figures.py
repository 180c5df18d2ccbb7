"""The figures of all parts as one table, and the promises that they must keep."""

from collections.abc import Mapping
from typing import Any

OVERHEAD_LIMIT_MS = 2.0
GROWTH_LIMIT_MB = 8.0
LEAST_FAULTS = 100_000
ANSWERED_SHARE = 0.99
LEAST_CHUNKS = {"simulated": 2000, "over_dds": 150}
"""For each soak, how many chunks each strategy has to send: less says nothing of their safety."""
SOAKS = tuple(LEAST_CHUNKS)
JUDGED_SHARE = 0.95
"""Of the live chunks of each strategy that the replay must be able to judge."""
LEAST_SAMPLES = 500
LEAST_ROWS = 20


def merged(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One dictionary of all figures.

    Args:
        parts: Name of each part that came to its end, to what it found.
    """
    found: dict[str, Any] = {}
    soaks = {name: parts[name] for name in SOAKS if name in parts}
    if len(soaks) == len(SOAKS):
        counts = {name: sum(one["faults"].values()) for name, one in soaks.items()}
        found["faults_injected"] = sum(counts.values())
        found["faults_injected_by_part"] = counts
        found["unsafe_chunks"] = sum(sum(one["unsafe"].values()) for one in soaks.values())
        found["chunks_looked_at"] = sum(one["chunks"] for one in soaks.values())
    growth = {
        name: round(one["memory_growth_mb"], 3)
        for name, one in parts.items()
        if "memory_growth_mb" in one
    }
    if growth:
        found["memory_growth_mb"] = max(growth.values())
        found["memory_growth_mb_by_part"] = growth
    for name in ("overhead", "parity", "lifecycle", "fault_table", "package"):
        found |= {
            key: value for key, value in parts.get(name, {}).items() if key != "memory_growth_mb"
        }
    return found | {name: dict(one) for name, one in soaks.items()}


def broken_promises(found: Mapping[str, Any]) -> list[str]:
    """What the figures must not show; a figure that is missing is told by its part."""
    checks = {
        "unsafe_chunks": ("an unsafe chunk was sent", lambda n: n > 0),
        "parity_mismatches": ("a chunk differs from its replay", lambda n: n > 0),
        "clean_trips": ("clean recordings tripped a limit", bool),
        "false_positive_refused": ("a limit refused a chunk of a clean bag", lambda n: n > 0),
        "memory_growth_mb": (
            f"memory grew by more than {GROWTH_LIMIT_MB:g} MB",
            lambda size: size > GROWTH_LIMIT_MB,
        ),
        "overhead_ms_p99": (
            f"the node costs more than {OVERHEAD_LIMIT_MS:g} ms",
            lambda ms: ms > OVERHEAD_LIMIT_MS,
        ),
        "fault_table_failed": ("a row of the fault table is not held by its tests", bool),
        "node_tests_failed": ("a test of the node failed", bool),
        "colcon_tests_failed": ("colcon test failed", lambda n: n > 0),
    }
    broken = [text for key, (text, wrong) in checks.items() if key in found and wrong(found[key])]
    return broken + _too_little(found)


def _too_little(found: Mapping[str, Any]) -> list[str]:
    """Where so little was measured that nothing bad could have been seen."""
    share = found.get("share_of_the_work", 1)
    least = {
        "faults_injected": (share * LEAST_FAULTS, "faults were injected"),
        "lifecycle_cycles": (found.get("lifecycle_cycles_asked", 0), "lifecycle cycles succeeded"),
        "overhead_chunks": (
            ANSWERED_SHARE * found.get("overhead_frames", 0),
            f"frames were answered, which is {ANSWERED_SHARE:.0%}",
        ),
        "clean_samples": (share * LEAST_SAMPLES, "samples of clean recordings were served"),
        "fault_table_rows": (LEAST_ROWS, "rows of the fault table were found"),
    }
    texts = [
        f"fewer than {count:,.0f} {what}: {found[key]}"
        for key, (count, what) in least.items()
        if key in found and found[key] < count
    ]
    for name in SOAKS:
        if name in found:
            texts += _too_little_of_a_soak(name, found[name], share)
    chunks = found.get("parity_chunks_by_strategy", {})
    for strategy, judged in found.get("parity_judged_by_strategy", {}).items():
        if judged < max(1, JUDGED_SHARE * chunks[strategy]):
            texts.append(f"the replay judged {judged} of {chunks[strategy]} chunks of {strategy}")
    return texts


def _too_little_of_a_soak(name: str, soak: Mapping[str, Any], share: float) -> list[str]:
    least = share * LEAST_CHUNKS[name]
    texts = [
        f"{name}, {strategy}: fewer than {least:,.0f} chunks were looked at: {count}"
        for strategy, count in soak["chunks_by_strategy"].items()
        if count < least
    ]
    return texts + [
        f"{name}, {strategy}: no chunk was {reason}, so that refusing one was not tried"
        for strategy, refused in soak["refused_by_strategy"].items()
        for reason, count in refused.items()
        if count == 0
    ]


def table_text(found: Mapping[str, Any]) -> str:
    """The figures that are numbers or words, a line each; dictionaries of numbers in one line."""
    lines = []
    for key, value in found.items():
        if key in (*SOAKS, "machine", "versions", "false_positive_rate", "fault_table"):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {one}" for name, one in value.items()) or "none"
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        lines.append(f"{key:<34}{value}")
    rates = found.get("false_positive_rate")
    if rates is not None:
        lines.append("")
        lines += _rate_lines(rates)
    return "\n".join(lines)


def _rate_lines(rates: Mapping[str, Any]) -> list[str]:
    lines = [f"{'false positives':<34}{'lower':>10}{'upper':>10}{'max_step':>10}"]
    for name, one in rates["actions"].items():
        lines.append(f"{name:<34}" + "".join(f"{rate:>10.2%}" for rate in one.values()))
    return lines + [f"{name:<34}{rate:>10.2%}" for name, rate in rates["inputs"].items()]
