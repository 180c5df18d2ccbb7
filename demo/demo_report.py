"""The demo's results as a page."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qvla_ros.evaluate.figures import plot_action_traces, plot_error_by_dimension, plot_latency
from qvla_ros.evaluate.quantization_report import add_plan, add_scores
from qvla_ros.evaluate.report import Report

if TYPE_CHECKING:
    from demo.run_demo import DemoResult


def write_report(result: "DemoResult", path: Path) -> None:
    """Write the page, atomically."""
    summary = result.summary
    bf16, nearest, ours = result.contestants
    report = Report(
        "The demo policy in the bytes of 4 bits, by action sensitivity",
        f"{summary['machine']['processor']}, {summary['machine']['cores']} cores, "
        f"{summary['heldout_frames']} held-out frames",
    )
    report.add_tiles(
        {
            "of the BF16 bytes": f"{summary['packed_share']:.1%}",
            "action error, ours": f"{ours.error.mean_l1:.4f}",
            "action error, round-to-nearest": f"{nearest.error.mean_l1:.4f}",
            "chunks over DDS": str(summary["chunks_received"]),
            "stale chunks": str(summary["chunks_stale"]),
            "camera stamp to chunk, p99": f"{summary['latency_ms_p99']:.0f} ms",
        }
    )
    report.add_table(
        ("policy", "bytes", "of BF16", "action error (L1)", "gripper flips", "p50 ms"),
        [
            (
                one.label,
                f"{one.bytes:,}",
                f"{one.bytes / bf16.bytes:.1%}",
                f"{one.error.mean_l1:.5f}",
                one.error.gripper_flips,
                f"{np.median(one.latency_ms):.1f}",
            )
            for one in result.contestants
        ],
        "Held-out frames against the float32 policy, in normalised action units. The BF16 bytes "
        "count the whole released folder, unused blocks and lm_head included.",
    )
    report.add_heading("Where the bits went")
    add_plan(report, result.plan, result.table)
    add_scores(report, result.table)
    _add_actions(report, result)
    _add_live(report, result)
    report.write(path)


def _add_actions(report: Report, result: "DemoResult") -> None:
    names = result.model.processing.settings.robot.action_names
    report.add_heading("What the robot would do")
    report.add_figure(
        plot_error_by_dimension(
            names, {one.label: one.error.l1_by_dimension for one in reversed(result.contestants)}
        ),
        "Mean absolute action error by dimension.",
    )
    first = result.heldout.episodes[0]
    count = len(first.observations)
    start = first.observations[0].stamp_ns
    times = np.array([(one.stamp_ns - start) / 1e9 for one in first.observations])
    ours = result.contestants[-1]
    traces = {
        ours.label: ours.answers.values[:count, 0],
        "float32": result.reference.values[:count, 0],
    }
    report.add_figure(
        plot_action_traces(times, traces, names),
        "First action of every chunk over the first held-out episode, normalised units.",
    )


def _add_live(report: Report, result: "DemoResult") -> None:
    live = result.live
    report.add_heading("Over ROS 2")
    model = [chunk["stage_ms"].get("model", float("nan")) for chunk in live.chunks]
    report.add_figure(
        plot_latency({"camera stamp to received chunk": live.delays_ms, "network": model}),
        "Measured by an independent subscriber; the network's share as the node states it.",
    )
    report.add_table(
        ("diagnostic", "value"),
        sorted(live.diagnostics[-1]["values"].items()),
        "The last message on /diagnostics.",
    )
