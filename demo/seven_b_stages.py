"""Made-up scores, and a packed file of them, for models too large to be measured in an hour.

    python -m demo.seven_b_stages STEP --model FOLDER --bag BAG --table FILE ...

The last line on standard output is JSON.
"""

import argparse
import json
import sys
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
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.pipeline import calibrate, plan_bits, write_quantized
from qvla_ros.quantize.quantized_model import LayerCodes, QuantizedModel
from qvla_ros.quantize.rounding import codes_on, nearest_grid
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.storage import load_table, save_table
from qvla_ros.quantize.widths import WIDTHS

VISION = "vision_backbone."


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


def _nearest(options: argparse.Namespace, model: LoadedModel, frames: CalibrationSet) -> dict:
    quantized = nearest(model, load_table(options.table), options.bits)
    budget = BitBudget(average_bits_per_weight=options.bits)
    written = write_quantized(model, quantized, budget, options.out)
    return {
        "file_bytes": written.file_bytes,
        "bf16_bytes": model.bf16_bytes,
        "average_bits": quantized.average_bits_per_weight,
    }


STEPS: dict[str, Callable[[argparse.Namespace, LoadedModel, CalibrationSet], dict]] = {
    "table": _table,
    "nearest": _nearest,
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Made-up scores, or a file packed by them.")
    parser.add_argument("step", choices=STEPS)
    for option in ("model", "bag", "table"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--bits", type=float, default=3.9)
    options = parser.parse_args()
    model = open_model(options.model)
    layout = BagLayout.of_robot(model.processing.settings.robot)
    observations = read_episode(options.bag, layout).observations
    frames = calibrate(model, observations, options.frames)
    found = STEPS[options.step](options, model, frames)
    found |= {"peak_bytes": process_memory()["process_peak"]}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
