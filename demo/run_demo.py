"""``make demo``: from a trained VLA to action chunks on a ROS 2 topic, measured.

Assemble the demo model, measure its sensitivity on the calibration bags, round it to nearest at 4
bits, quantize it to the same bytes, serve that checkpoint through ``launch_ros``, play the
held-out bags to it over DDS, and compare what an independent subscriber received with the float
policy.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.assemble import SOURCE, assemble
from demo.demo_report import write_report
from demo.live_run import ROOT, LiveRun, run_live
from qvla_ros.atomic_file import atomic_file
from qvla_ros.cli.progress import Progress
from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.comparison import NormalizedActions, answer_all
from qvla_ros.evaluate.deployed_error import quality
from qvla_ros.evaluate.episode import Episode, Observations, read_episode
from qvla_ros.evaluate.fidelity import ActionError
from qvla_ros.evaluate.latency import measure_latency
from qvla_ros.evaluate.machine import describe_machine
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.registry import LoadedModel, load_model
from qvla_ros.observation import Observation
from qvla_ros.policy.policy import Policy, PolicyIdentity, float_policy, load_policy
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan, uniform_plan
from qvla_ros.quantize.pipeline import (
    calibrate,
    measure_model,
    plan_bits,
    quantize_model,
    write_quantized,
)
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rounding import Grid, nearest_grid
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.storage import save_plan, save_table

BITS = 4
OURS = "QVLA, same bytes"
REPEAT = 3
TIMED_INFERENCES = 40


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run the model, measured on the held-out frames.

    Attributes:
        label: For tables.
        bytes: Of the checkpoint, or of the float tensors.
        error: Against the float32 policy.
        answers: Normalised actions on every held-out frame.
        latency_ms: Whole inferences, in this process.
    """

    label: str
    bytes: int
    error: ActionError
    answers: NormalizedActions
    latency_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Heldout:
    """The held-out bags.

    Attributes:
        bags: Folders.
        episodes: Their contents.
    """

    bags: tuple[Path, ...]
    episodes: tuple[Episode, ...]

    @property
    def observations(self) -> list[Observation]:
        """All frames of all bags, in order."""
        return [one for episode in self.episodes for one in episode.observations]

    @property
    def index_of(self) -> dict[tuple[str, int], int]:
        """Bag and recorded stamp to the index in ``observations``; bags may share stamps."""
        pairs = [
            (str(bag), one.stamp_ns)
            for bag, episode in zip(self.bags, self.episodes, strict=True)
            for one in episode.observations
        ]
        return {pair: index for index, pair in enumerate(pairs)}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that the demo measured.

    Attributes:
        model: The float model.
        table: Sensitivity of every row.
        plan: The mixed plan.
        reference: Answers of the float32 policy on every held-out frame.
        contestants: BF16, round-to-nearest, ours.
        heldout: The held-out bags.
        live: What came over DDS.
        summary: The content of ``summary.json``.
    """

    model: LoadedModel
    table: SensitivityTable
    plan: BitPlan
    reference: NormalizedActions
    contestants: tuple[Contestant, ...]
    heldout: Heldout
    live: LiveRun
    summary: dict


def run(out: Path, bags: Path) -> DemoResult:
    """Run everything; files are left under ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for old in ("summary.json", "report.html", "chunks.jsonl", "frames.json"):
        (out / old).unlink(missing_ok=True)  # a failed run must not look like the last good one
    folder = assemble(SOURCE, out / "model")
    model = load_model(folder)
    folders = tuple(sorted(bags.glob("heldout_*")))
    layout = BagLayout.of_robot(model.processing.settings.robot)
    heldout = Heldout(folders, tuple(read_episode(bag, layout) for bag in folders))
    observations = Observations.of_all(
        read_episode(bag, layout).observations for bag in sorted(bags.glob("calibration_*"))
    )
    calibration = calibrate(model, observations)
    with Progress(len(model.network.stages()), "measuring sensitivity") as progress:
        table = measure_model(model, calibration, on_progress=progress.set)
    save_table(table, out / "sensitivity.safetensors")
    ours, nearest = (out / f"{name}.qvla.safetensors" for name in ("policy", "nearest"))
    uniform = uniform_plan(table, BITS)
    size = write_quantized(model, _nearest(model, uniform), uniform.budget, nearest).file_bytes
    plan = plan_bits(model, table, BitBudget(max_bytes=size))
    save_plan(plan, out / "plan.safetensors")
    with Progress(len(model.network.stages()), "quantizing") as progress:
        quantized = quantize_model(model, plan, calibration, progress.set)
    write_quantized(model, quantized, plan.budget, ours)
    reference, contestants = _contest(model, folder, ours, nearest, heldout.observations)
    told = quality(contestants[-1].error, "heldout", len(heldout.observations))
    write_quantized(model, quantized, plan.budget, ours, told)
    print(f"serving {ours.name} and playing {len(folders)} bags {REPEAT} times", file=sys.stderr)
    live = run_live(ours, folders, REPEAT, out)
    if not live.chunks or not live.diagnostics:
        raise ConfigurationError(f"nothing came over DDS: see {out / 'node.log'}")
    summary = _summary(model, plan, reference, contestants, heldout, live)
    result = DemoResult(model, table, plan, reference, contestants, heldout, live, summary)
    with atomic_file(out / "summary.json") as file:
        file.write(f"{json.dumps(result.summary, indent=2)}\n".encode())
    write_report(result, out / "report.html")
    return result


def _nearest(model: LoadedModel, plan: BitPlan) -> QuantizedModel:
    """Plain round-to-nearest."""

    def rounding(layer: LinearLayer, weight: Tensor, bits: int) -> tuple[Grid, Tensor]:
        return nearest_on(nearest_grid, weight, bits, torch.ones(layer.columns))

    return rounded(model.network, plan, rounding)


def _contest(
    model: LoadedModel, folder: Path, ours: Path, nearest: Path, observations: list[Observation]
) -> tuple[NormalizedActions, tuple[Contestant, ...]]:
    identity = PolicyIdentity(model.model_id, model.fingerprint, "float32")
    exact = Policy(model.network, model.processing, identity)
    candidates = (
        ("BF16", model.bf16_bytes, float_policy(folder, dtype=torch.bfloat16)),
        (f"RTN {BITS} bits", nearest.stat().st_size, load_policy(nearest)),
        (OURS, ours.stat().st_size, load_policy(ours)),
    )
    contestants = []
    with Progress((1 + len(candidates)) * len(observations), "comparing actions") as progress:
        reference = answer_all(exact, observations, lambda *_: progress.advance())
        for label, size, policy in candidates:
            answers = answer_all(policy, observations, lambda *_: progress.advance())
            error = answers.error_against(reference, policy.processing)
            latency = measure_latency(policy, observations, TIMED_INFERENCES).wall_ms
            contestants.append(Contestant(label, size, error, answers, latency))
    return reference, tuple(contestants)


def _summary(
    model: LoadedModel,
    plan: BitPlan,
    reference: NormalizedActions,
    contestants: tuple[Contestant, ...],
    heldout: Heldout,
    live: LiveRun,
) -> dict:
    bf16, nearest, ours = contestants
    live_error, unmatched = _live_error(model, live, heldout, reference)
    played = [frame["sent"] for frame in live.frames]
    stamps = [chunk["stamp"] for chunk in live.chunks]
    return {
        "average_bits_per_weight": round(plan.average_bits_per_weight, 4),
        "bit_histogram": {str(bits): rows for bits, rows in plan.bit_histogram.items()},
        "packed_bytes": ours.bytes,
        "rtn_packed_bytes": nearest.bytes,
        "bf16_bytes": bf16.bytes,
        "packed_share": round(ours.bytes / bf16.bytes, 4),
        "heldout_action_error": ours.error.mean_l1,
        "rtn_heldout_action_error": nearest.error.mean_l1,
        "bf16_heldout_action_error": bf16.error.mean_l1,
        "heldout_gripper_flips": {c.label: c.error.gripper_flips for c in contestants},
        "heldout_frames": len(reference.values),
        "chunks_received": len(live.chunks),
        "chunks_finite": all(np.isfinite(chunk["data"]).all() for chunk in live.chunks),
        "chunks_stale": sum(c["received"] > c["valid_until"] for c in live.chunks),
        "chunks_unmatched": unmatched,
        "seconds_covered": round((max(stamps) - min(stamps)) / 1e9, 2),
        "seconds_played": round((max(played) - min(played)) / 1e9, 2),
        "live_action_error": live_error,
        "latency_ms_p50": float(np.percentile(live.delays_ms, 50)),
        "latency_ms_p99": float(np.percentile(live.delays_ms, 99)),
        "offline_latency_ms_p50": {c.label: float(np.median(c.latency_ms)) for c in contestants},
        "peak_rss_bytes": int(live.diagnostics[-1]["values"]["memory_process_peak_bytes"]),
        "machine": describe_machine(),
    }


def _live_error(
    model: LoadedModel, live: LiveRun, heldout: Heldout, reference: NormalizedActions
) -> tuple[float, int]:
    """Mean L1 of the received chunks against the float policy, and chunks of unknown frames."""
    frames, indices = live.frame_of_stamp, heldout.index_of
    errors, unmatched = [], 0
    for chunk in live.chunks:
        frame = frames.get(chunk["stamp"])
        index = indices.get((frame["bag"], frame["recorded"])) if frame else None
        if index is None:
            unmatched += 1
            continue
        actions = np.asarray(chunk["data"], np.float32).reshape(chunk["horizon"], chunk["dim"])
        normalized = model.processing.normalized_actions(actions)
        errors.append(np.abs(normalized - reference.values[index]).mean())
    return (float(np.mean(errors)) if errors else float("nan")), unmatched


def table_text(result: DemoResult) -> str:
    """The measured table, as text."""
    lines = [
        f"{'':<16}{'bytes':>12}{'of BF16':>9}{'action error':>14}{'flips':>7}{'p50 ms':>8}",
    ]
    base = result.contestants[0].bytes
    for one in result.contestants:
        lines.append(
            f"{one.label:<16}{one.bytes:>12,}{one.bytes / base:>9.1%}{one.error.mean_l1:>14.5f}"
            f"{one.error.gripper_flips:>7}{np.median(one.latency_ms):>8.1f}"
        )
    summary = result.summary
    lines += [
        "",
        f"over DDS: {summary['chunks_received']} chunks, {summary['chunks_stale']} stale, "
        f"covering {summary['seconds_covered']} of {summary['seconds_played']} s played; camera "
        f"stamp to chunk p50 {summary['latency_ms_p50']:.1f} ms, "
        f"p99 {summary['latency_ms_p99']:.1f} ms; action error {summary['live_action_error']:.5f}; "
        f"node's peak memory {summary['peak_rss_bytes'] / 2**20:.0f} MiB",
        "action error: mean |a - a_float32| in normalised units; flips: gripper decisions changed",
    ]
    return "\n".join(lines)


def faults(summary: dict) -> list[str]:
    """What a good run must not show."""
    checks = {
        "a chunk was not finite": not summary["chunks_finite"],
        "a chunk was stale": summary["chunks_stale"] > 0,
        "a chunk answers a frame that was never played": summary["chunks_unmatched"] > 0,
        "the bags were not covered": summary["seconds_covered"] < 0.9 * summary["seconds_played"],
        "the mixed plan is not better than round-to-nearest": summary["heldout_action_error"]
        >= summary["rtn_heldout_action_error"],
        "the mixed checkpoint is larger": summary["packed_bytes"] > summary["rtn_packed_bytes"],
        "the checkpoint is larger than 0.35 of BF16": summary["packed_share"] >= 0.35,
    }
    return [text for text, wrong in checks.items() if wrong]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Quantize, serve and measure the demo policy.")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output")
    parser.add_argument("--bags", type=Path, default=ROOT / "demo" / "bags")
    arguments = parser.parse_args()
    try:
        result = run(arguments.out, arguments.bags)
    except QvlaError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(table_text(result))
    print(f"\n{arguments.out / 'summary.json'}\n{arguments.out / 'report.html'}")
    wrong = faults(result.summary)
    for text in wrong:
        print(f"demo: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
