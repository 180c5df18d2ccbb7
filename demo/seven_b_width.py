"""The whole offline path at full width, by the real verbs, and what 32 layers would take."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.seven_b_parts import Place, qvla, succeeded
from demo.seven_b_stages import VISION
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.cli.estimates import ESTIMATES
from qvla_ros.cli.run_config import beside
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.storage import load_table

LLAMA_LAYERS = 32
"""Of the released models, to which seconds and memory are extrapolated."""

LANGUAGE = "language_model."


def full_width(place: Place) -> dict[str, object]:
    """Measure, plan, quantize and verify a model of full width and few Llama layers."""
    folder, table = place.work / "wide", place.work / "wide.table.safetensors"
    plan, out = place.work / "wide.plan.safetensors", place.work / "wide.qvla.safetensors"
    scale, frames = place.scale, ("--frames", place.scale.frames)
    size = ("--scale", scale.wide, "--llama-layers", scale.wide_layers)
    succeeded(qvla("synthesize", folder, *size))
    probes = ("--probes", scale.probes)
    ran = {
        "measure": qvla("measure", folder, place.bag, "--out", table, *frames, *probes),
        "plan": qvla("plan", table, "--model", folder, "--bits", scale.bits, "--out", plan),
        "quantize": qvla("quantize", folder, place.bag, "--plan", plan, "--out", out, *frames),
        "verify": qvla("verify", out, folder, place.bag, *frames, "--json"),
    }
    for one in ran.values():
        succeeded(one)
    steps = {
        "measure": _estimates(table)["measuring"],
        "quantize": _estimates(out)["quantizing"],
    }
    missing = Missing.of(load_table(table), folder, LLAMA_LAYERS - scale.wide_layers)
    keeps = {
        "measure": missing.measured_bytes(load_table(table)),
        "quantize": missing.packed_bytes(read_checkpoint(out).layers.values()),
    }
    shutil.rmtree(folder)
    peaks = {name: one.peak_mb / 1e3 for name, one in ran.items()}
    return {
        "full_width_llama_layers": scale.wide_layers,
        "full_width_frames": scale.frames,
        "full_width_probes": scale.probes,
        "full_width_peak_gb": max(peaks.values()),
        "full_width_peaks_gb": peaks,
        "full_width_seconds": {name: one.seconds for name, one in ran.items()},
        "extrapolated_32_layers_gb": {
            name: peaks[name] + missing.layers * kept / 1e9 for name, kept in keeps.items()
        },
        "per_layer_seconds": {
            name: missing.seconds(ran[name].seconds, one["took"]["stage_seconds"])
            for name, one in steps.items()
        },
        "full_width_estimates": steps,
        "verified": json.loads(ran["verify"].out),
    }


def _estimates(result: Path) -> dict[str, Any]:
    """What the verb that made a result kept of its steps."""
    found: dict[str, Any] = json.loads(beside(result, ESTIMATES).read_bytes())
    return found


@dataclass(frozen=True, slots=True)
class Missing:
    """The Llama layers that the full model has and the measured one has not.

    Attributes:
        layers: How many.
        growth: Bytes of the full model's folder over those of the measured one's.
    """

    layers: int
    growth: float

    @classmethod
    def of(cls, table: SensitivityTable, folder: Path, layers: int) -> "Missing":
        """So many more layers like the first one of a folder's model."""
        there = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
        more = 2 * layers * sum(one.weights for one in table.layers if _is_first(one.name))
        return cls(layers, (there + more) / there)

    def packed_bytes(self, layers: Iterable[PackedLinear]) -> int:
        """What one finished Llama layer keeps while the others are quantized."""
        return sum(one.nbytes for one in layers if _is_first(one.name))

    def measured_bytes(self, table: SensitivityTable) -> int:
        """What one Llama layer keeps in a measurement: its scores, and what it has read."""
        mine = [one for one in table.layers if _is_first(one.name)]
        scores = sum(table.scores[one.name].nbytes for one in mine)
        weights = sum(table.token_weights[one.name].nbytes for one in mine)
        read = 4 * len(table.token_weights[mine[0].name]) * mine[0].columns
        return scores + weights + read

    def seconds(self, whole: float, stages: Mapping[str, float]) -> dict[str, float]:
        """Of one verb, taken apart, and extrapolated to all layers.

        What is neither a Llama layer nor a tower (opening the folder, the run forward, packing,
        the checks) is taken to grow with the bytes of the model.
        """
        language = [value for name, value in stages.items() if name.startswith(LANGUAGE)]
        vision = sum(value for name, value in stages.items() if name.startswith(VISION))
        layer = sum(language) / len(language)
        rest = whole - sum(language) - vision
        total = vision + (len(language) + self.layers) * layer + rest * self.growth
        return {
            "llama_layer": layer,
            "vision_towers": vision,
            "rest": rest,
            "extrapolated_32_layers": total,
        }


def _is_first(name: str) -> bool:
    return name.startswith(f"{LANGUAGE}model.layers.0.")
