"""One step of the offline path on one model folder, in a process of its own, with a clock.

    python -m demo.seven_b_stages STEP --model FOLDER --bag BAG --work FOLDER ...

The calls are those of ``qvla measure`` and ``qvla quantize``; this looks at the clock after every
stage of the network, which the verbs do not tell. The last line on standard output is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from qvla_ros.cli.progress import Progress
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.models.registry import LoadedModel, open_model
from qvla_ros.policy.memory import process_memory
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.estimate import (
    Estimate,
    Workload,
    flop_rate,
    measure_estimate,
    quantize_estimate,
)
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.pipeline import (
    calibrate,
    measure_model,
    plan_bits,
    quantize_model,
    write_quantized,
)
from qvla_ros.quantize.quantized_model import LayerCodes, QuantizedModel
from qvla_ros.quantize.rounding import codes_on, nearest_grid
from qvla_ros.quantize.sensitivity import MeasureSettings, SensitivityTable
from qvla_ros.quantize.storage import load_table, save_table
from qvla_ros.quantize.widths import WIDTHS

LANGUAGE, VISION = "language_model.", "vision_backbone."


class StageClock:
    """Seconds of every stage of a network, through ``on_progress``."""

    def __init__(self, names: list[str], label: str) -> None:
        self._names = iter(names)
        self._progress = Progress(len(names), label)
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Count from now."""
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """A stage is done."""
        now = time.monotonic()
        self.seconds[next(self._names)] = now - self._last
        self._last = now
        self._progress.set(done, total)


def made_up_table(model: LoadedModel, calibration: CalibrationSet, seed: int) -> SensitivityTable:
    """Scores as they might be: rows differ by orders of magnitude, a bit is worth a factor of 4.

    The numbers of tokens are real: the network runs as far as its first block of each kind.
    """
    layers = tuple(model.network.linear_layers())
    generator = torch.Generator().manual_seed(seed)
    fall = torch.tensor([4.0**-bits for bits in WIDTHS[:-1]] + [0.0], dtype=torch.float64)
    scores = {
        one.name: torch.randn(one.rows, 1, generator=generator, dtype=torch.float64).exp() * fall
        for one in layers
    }
    counts = _tokens_of_stages(model, calibration)
    stages = model.network.stages()
    tokens = {
        one.name: counts[next(stage.name for stage in stages if stage.owns(one.name))]
        for one in layers
    }
    return SensitivityTable(
        layers=layers,
        scores=scores,
        token_weights={name: torch.ones(count) for name, count in tokens.items()},
        model_fingerprint=model.fingerprint,
        calibration_fingerprint=calibration.fingerprint,
        probes=1,
        seed=seed,
    )


def _tokens_of_stages(model: LoadedModel, calibration: CalibrationSet) -> dict[str, int]:
    """Tokens that the layers of each stage see; blocks that keep a shape are run once."""
    counts: dict[str, int] = {}
    with torch.no_grad():
        for batch in calibration.batches():
            state = model.network.first_state(batch)
            for stage in model.network.stages():
                before = state[stage.reads[0]]
                block = stage.name.rpartition(".")[2].isdigit()
                seen = before if block else stage.run(state)[stage.writes]
                counts[stage.name] = counts.get(stage.name, 0) + seen.shape[0] * seen.shape[1]
                last = _is_last_of_tower(model, stage.name)
                if last:
                    seen = seen[:, -model.network.config.towers[0].patches :]
                state = {**state, stage.writes: seen}
    return counts


def _is_last_of_tower(model: LoadedModel, name: str) -> bool:
    return any(
        name == f"{VISION}{tower}.blocks.{config.live_blocks - 1}"
        for tower, config in zip(
            ("featurizer", "fused_featurizer"), model.network.config.towers, strict=True
        )
    )


def nearest(model: LoadedModel, table: SensitivityTable, bits: float) -> QuantizedModel:
    """Every row at its planned width, rounded to nearest: the shapes count here, not the error."""
    plan = plan_bits(model, table, BitBudget(average_bits_per_weight=bits))
    finished = {}
    with Progress(len(plan.layers), "rounding to nearest") as progress:
        for layer in plan.layers:
            weight = linear_weight(model.network, layer)
            kept = plan.input_columns.get(layer.name)
            stored = weight if kept is None else weight[:, kept.long()]
            codes = LayerCodes(layer, plan.row_bits[layer.name], stored)
            for width, index in codes.rows_by_width():
                grid = nearest_grid(stored[index], width, stored[0])
                codes.put(index, grid, codes_on(stored[index], grid, width))
            finished[layer.name] = codes.finished(16, kept)
            progress.advance()
    return QuantizedModel(finished)


def _table(options: argparse.Namespace, model: LoadedModel, frames: CalibrationSet) -> dict:
    save_table(made_up_table(model, frames, 0), options.table)
    return {}


def _measure(options: argparse.Namespace, model: LoadedModel, frames: CalibrationSet) -> dict:
    tokens = {
        name: len(weights)
        for name, weights in made_up_table(model, frames, 0).token_weights.items()
    }
    work = Workload.of(model.network, tokens, options.frames)
    estimate = measure_estimate(work, options.probes, flop_rate())
    names = [stage.name for stage in model.network.stages()][::-1]
    clock = StageClock(names, "measuring")
    settings = MeasureSettings(probes=options.probes)
    began = time.monotonic()
    clock.start()
    save_table(measure_model(model, frames, None, settings, clock), options.table)
    return _facts(clock, estimate, time.monotonic() - began)


def _quantize(options: argparse.Namespace, model: LoadedModel, frames: CalibrationSet) -> dict:
    table = load_table(options.table)
    plan = plan_bits(model, table, BitBudget(average_bits_per_weight=options.bits))
    work = Workload.of(
        model.network,
        {name: len(weights) for name, weights in plan.token_weights.items()},
        options.frames,
    )
    estimate = quantize_estimate(work, options.bits, flop_rate())
    clock = StageClock([stage.name for stage in model.network.stages()], "quantizing")
    journal = Journal(options.work / "journal", {"model": model.fingerprint})
    began = time.monotonic()
    clock.start()
    quantized = quantize_model(model, plan, frames, clock, journal)
    seconds = time.monotonic() - began
    written = write_quantized(model, quantized, plan.budget, options.out)
    return _facts(clock, estimate, seconds) | {
        "file_bytes": written.file_bytes,
        "bf16_bytes": model.bf16_bytes,
        "average_bits": quantized.average_bits_per_weight,
    }


def _nearest(options: argparse.Namespace, model: LoadedModel, frames: CalibrationSet) -> dict:
    quantized = nearest(model, load_table(options.table), options.bits)
    budget = BitBudget(average_bits_per_weight=options.bits)
    written = write_quantized(model, quantized, budget, options.out)
    return {
        "file_bytes": written.file_bytes,
        "bf16_bytes": model.bf16_bytes,
        "average_bits": quantized.average_bits_per_weight,
    }


def _facts(clock: StageClock, estimate: Estimate, seconds: float) -> dict:
    language = [value for name, value in clock.seconds.items() if name.startswith(LANGUAGE)]
    vision = [value for name, value in clock.seconds.items() if name.startswith(VISION)]
    return {
        "seconds": seconds,
        "llama_layer_seconds": sum(language) / len(language),
        "vision_seconds": sum(vision),
        "other_seconds": seconds - sum(language) - sum(vision),
        "estimate": estimate.to_json(),
    }


STEPS: dict[str, Callable[[argparse.Namespace, LoadedModel, CalibrationSet], dict]] = {
    "table": _table,
    "measure": _measure,
    "quantize": _quantize,
    "nearest": _nearest,
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="One timed step of the offline path.")
    parser.add_argument("step", choices=STEPS)
    for option in ("model", "bag", "work", "table"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument("--bits", type=float, default=3.9)
    options = parser.parse_args()
    began = time.monotonic()
    model = open_model(options.model)
    layout = BagLayout.of_robot(model.processing.settings.robot)
    observations = read_episode(options.bag, layout).observations
    frames = calibrate(model, observations, options.frames)
    opened = time.monotonic() - began
    found = STEPS[options.step](options, model, frames)
    found |= {"open_seconds": opened, "peak_bytes": process_memory()["process_peak"]}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
