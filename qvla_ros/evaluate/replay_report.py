"""The replay's result for people: a table in text, and a page with figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from qvla_ros.evaluate.fidelity import ActionError
from qvla_ros.evaluate.figures import (
    plot_action_traces,
    plot_drift,
    plot_error_by_dimension,
    plot_executed_steps,
    plot_latency,
)
from qvla_ros.evaluate.replay_result import ReplayResult, ReplaySummary, summarize
from qvla_ros.evaluate.report import Report

_HEADER = (
    "episode", "steps", "chunks", "L1 recorded", "L1 reference", "seam max", "p50 ms", "p99 ms",
    "misses", "held", "dropped", "trips",
)  # fmt: skip
_TRACED_EPISODES = 3


def table_rows(results: Sequence[ReplayResult]) -> list[list[str]]:
    """A row an episode, and one for all together if there are several; see ``table_text``."""
    rows = [_row(one.name, summarize([one])) for one in results]
    return [*rows, _row("all", summarize(results))] if len(results) > 1 else rows


def table_text(results: Sequence[ReplayResult]) -> str:
    """The table in aligned columns, for a terminal."""
    rows = [list(_HEADER), *table_rows(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def replay_report(
    title: str, subtitle: str, results: Sequence[ReplayResult], facts: Mapping[str, str]
) -> Report:
    """A page about at least one replayed episode.

    Args:
        title: Heading.
        subtitle: What was replayed.
        results: One entry an episode, all of one policy.
        facts: Settings and machine, name to value, shown at the end.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    summary = summarize(results)
    report = Report(title, subtitle)
    report.add_tiles(_tiles(summary))
    report.add_table(
        _HEADER,
        table_rows(results),
        "L1: mean absolute error of all actions of all chunks in normalised action space, against "
        "the recorded actions and against the reference policy. Seam: greatest jump of the due "
        "action where a chunk took over. Misses: chunks that ran out before their successor. "
        "Held: instants without an action. Trips: chunks beyond a limit.",
    )
    for name, fault in summary.faults.items():
        report.add_text(f"{name}: the robot would have stopped for good: {fault}.")
    _add_errors(report, results, summary)
    _add_time(report, results)
    _add_refusals(report, summary)
    report.add_heading("Settings and machine")
    report.add_table(("what", "value"), list(facts.items()))
    return report


def _row(name: str, summary: ReplaySummary) -> list[str]:
    return [
        name,
        str(summary.steps),
        str(summary.chunks),
        _l1(summary.recorded_error),
        _l1(summary.reference_error),
        f"{summary.seam_maximum:.3f}",
        "–" if summary.latency is None else f"{summary.latency.p50:.1f}",
        "–" if summary.latency is None else f"{summary.latency.p99:.1f}",
        str(summary.deadline_misses),
        str(sum(summary.holds.values())),
        str(sum(summary.drops.values())),
        str(sum(summary.trips.values())),
    ]


def _l1(error: ActionError | None) -> str:
    return "–" if error is None else f"{error.mean_l1:.4f}"


def _tiles(summary: ReplaySummary) -> dict[str, str]:
    tiles = {"episodes": str(summary.episodes), "chunks": str(summary.chunks)}
    if summary.recorded_error is not None:
        tiles["L1 against the recording"] = _l1(summary.recorded_error)
    if summary.reference_error is not None:
        error = summary.reference_error
        tiles["L1 against the reference"] = _l1(error)
        tiles["gripper flips"] = f"{error.gripper_flips} / {error.gripper_values}"
    if summary.latency is not None:
        tiles["latency, ms: p50 / p99"] = f"{summary.latency.p50:.0f} / {summary.latency.p99:.0f}"
    tiles["deadline misses"] = str(summary.deadline_misses)
    return tiles


def _add_errors(report: Report, results: Sequence[ReplayResult], summary: ReplaySummary) -> None:
    errors = {
        "against the recording": summary.recorded_error,
        "against the reference": summary.reference_error,
    }
    present = {label: one.l1_by_dimension for label, one in errors.items() if one is not None}
    report.add_heading("Actions")
    if present:
        report.add_figure(
            plot_error_by_dimension(results[0].action_names, present),
            "Mean absolute error of each action dimension, all steps of all chunks.",
        )
    for result in results[:_TRACED_EPISODES]:
        report.add_figure(
            plot_action_traces(result.traces.times_s, _traces(result), result.action_names),
            f"{result.name}: the action due at each observation's stamp, normalised. "
            "A gap is a hold.",
        )
    for label in ("recorded", "reference"):
        drifts = {one.name: one.traces.drift(getattr(one.traces, label)) for one in results}
        if any(drifts.values()):
            report.add_figure(
                plot_drift({name: one for name, one in drifts.items() if one}),
                f"Executed against {label} actions, over the episode, in windows of a second.",
            )
    report.add_figure(
        plot_error_by_dimension(
            results[0].action_names,
            {one.name: one.seams.mean_by_dimension for one in results[:_TRACED_EPISODES]},
            "jump, normalised",
        ),
        "Mean jump of each dimension of the action that is due, where a chunk took over.",
    )


def _traces(result: ReplayResult) -> dict[str, np.ndarray]:
    traces = {
        "policy": result.traces.executed,
        "reference": result.traces.reference,
        "recorded": result.traces.recorded,
    }
    return {label: one for label, one in traces.items() if one is not None}


def _add_time(report: Report, results: Sequence[ReplayResult]) -> None:
    report.add_heading("Time")
    everything = [one for result in results for one in result.latency_ms]
    stages = {one.name: one.stages for one in results}
    report.add_table(
        ("episode", "stage", "inferences", "p50 ms", "p95 ms", "p99 ms"),
        [
            (name, stage, one.count, f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}")
            for name, table in stages.items()
            for stage, one in table.items()
        ],
        "Real time of each stage on this machine, warm-up left out.",
    )
    report.add_figure(
        plot_latency({"policy": everything}),
        "Real time of each inference on this machine, all episodes in order, warm-up left out.",
    )
    executed = [
        sum(counts) for counts in zip(*(one.executed_steps for one in results), strict=True)
    ]
    report.add_figure(
        plot_executed_steps(executed),
        "How often each step of a chunk was executed on simulated time: latency skips the first "
        "ones, and the last ones are reached only when the next chunk is late.",
    )


def _add_refusals(report: Report, summary: ReplaySummary) -> None:
    counts = {
        "not used": summary.drops,
        "no action": summary.holds,
        "chunk beyond a limit": summary.trips,
    }
    rows = [
        (what, reason, count)
        for what, reasons in counts.items()
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    report.add_heading("What was not used, and why")
    if not rows:
        report.add_text("Everything was used, and at each instant there was an action.")
        return
    report.add_table(
        ("what", "reason", "count"),
        rows,
        "Samples, observations and chunks that were not used, instants without an action, and "
        "chunks that the limits would refuse.",
    )
