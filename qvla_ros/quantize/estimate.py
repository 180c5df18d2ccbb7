"""What measuring and quantizing will take: memory, disk and time, from shapes alone.

Counted are the terms that grow: products of matrices, factors of second moments, passes of the
grid search. The time of one floating-point operation is measured on the machine (``flop_rate``).
The estimate is for planning; what really happened is printed beside it.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import ModelInputs, VlaNetwork
from qvla_ros.models.weight_source import HELD_BYTES
from qvla_ros.quantize.calibration import BATCH_FRAMES
from qvla_ros.quantize.candidates import STEP_BYTES
from qvla_ros.quantize.kept_states import MEMORY_BYTES
from qvla_ros.quantize.rounding import CLIP_STEPS
from qvla_ros.quantize.sensitivity import WEIGHT_PROBES
from qvla_ros.quantize.stage_inputs import KEPT_BYTES
from qvla_ros.quantize.widths import GRID_WIDTHS

_PROGRAM_BYTES = 700_000_000  # Python, PyTorch and transformers
_PASS_FLOPS = 60  # one weight in one pass of the grid search, in operations of a matrix product
_FACTOR_SLOWDOWN = 4  # of a factorisation, compared with a matrix product
_ROUNDING_FLOPS = 600  # one weight in the column by column part of compensated rounding
_STEP_FLOPS = 40  # one weight and width when its step is made and scored
CHECKED_FRAMES = 8
"""Frames that the float network answers together when a result is checked."""

_PLACEHOLDERS = 64  # tokens beside patches and text
_READ_BYTES_PER_S = 5e8


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one verb takes.

    Attributes:
        memory_bytes: Largest resident memory.
        disk_bytes: Work folder and result, beside the model.
        seconds: On an idle machine.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float

    def to_json(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.memory_bytes / 1e9:.1f} GB of memory, {self.disk_bytes / 1e9:.1f} GB of disk, "
            f"{self.seconds / 60:.0f} min"
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What is worked on.

    Attributes:
        stages: The layers of each stage that has any.
        tokens: Layer name to the tokens of all frames.
        frames: How many.
        other_weights: Numbers of the network beside its layers.
    """

    stages: tuple[tuple[LinearLayer, ...], ...]
    tokens: Mapping[str, int]
    frames: int
    other_weights: int

    @classmethod
    def of(cls, network: VlaNetwork, tokens: Mapping[str, int], frames: int) -> "Workload":
        """The layers of a network, by stage."""
        layers = network.linear_layers()
        stages = tuple(
            tuple(layer for layer in layers if stage.owns(layer.name))
            for stage in network.stages()
        )
        total = sum(parameter.numel() for parameter in network.parameters())
        return cls(
            tuple(stage for stage in stages if stage),
            tokens,
            frames,
            total - sum(layer.weights for layer in layers),
        )

    @property
    def layers(self) -> list[LinearLayer]:
        """All of them."""
        return [layer for stage in self.stages for layer in stage]

    @property
    def weights(self) -> int:
        """Of all layers."""
        return sum(layer.weights for layer in self.layers)

    def kept_states(self) -> int:
        """Bytes of what all frames are between two stages, in one network."""
        return max(4 * self.tokens[one.name] * one.columns for one in self.layers) // 2


def expected_tokens(network: VlaNetwork, frame: ModelInputs, frames: int) -> dict[str, int]:
    """About how many tokens of so many frames like this one each layer will see."""
    views = frame.pixels.shape[1] // 6
    patches = views * network.config.towers[0].patches
    text = frame.token_ids.shape[1] + _PLACEHOLDERS
    return {
        layer.name: frames * (patches + (text if layer.part == "language" else 0))
        for layer in network.linear_layers()
    }


def measure_estimate(work: Workload, probes: int, rate: float) -> Estimate:
    """Of ``qvla measure``.

    Args:
        work: What is measured.
        probes: Backward passes a frame.
        rate: See ``flop_rate``.
    """
    weighing = min(WEIGHT_PROBES, probes)
    widths = len(GRID_WIDTHS)
    flops = 0.0
    for one in work.layers:
        tokens, square = work.tokens[one.name], one.columns**2
        flops += 2 * tokens * one.weights * (3 + weighing + 2 * probes)
        flops += 2 * tokens * square * (1 + weighing)
        flops += _rounding_flops(one, widths)
        flops += widths * _STEP_FLOPS * one.weights * probes
    batch = min(work.frames, BATCH_FRAMES) / work.frames
    peak = max(
        sum(8 * one.columns**2 + (4 + widths) * one.weights for one in stage)
        + max(max(12 * one.columns**2, 12 * one.weights) for one in stage)
        + int(batch * sum(16 * work.tokens[one.name] * one.rows for one in stage))
        for stage in work.stages
    )
    states = sum(
        4 * max(work.tokens[one.name] * one.columns for one in stage) // 2 for stage in work.stages
    )
    slopes = probes * work.kept_states()
    # The journal is put together in memory, and a new one is there before the old one goes.
    held = min(states, MEMORY_BYTES) + work.kept_states() + 2 * slopes
    table = 8 * (1 + len(GRID_WIDTHS)) * sum(one.rows for one in work.layers)
    memory = _PROGRAM_BYTES + _held(work) + peak + held + 2 * STEP_BYTES + 2 * table
    spilled = max(0, states - MEMORY_BYTES)
    disk = 3 * table + 2 * slopes + spilled
    return Estimate(memory, disk, flops / rate + _reading_s(work, 4))


def quantize_estimate(work: Workload, average_bits: float, rate: float) -> Estimate:
    """Of ``qvla quantize`` by a plan: the codes, the golden answer, and the check of the result.

    The result is taken to be checked on as many frames as it is made on.

    Args:
        work: What is quantized.
        average_bits: Of a weight.
        rate: See ``flop_rate``.
    """
    flops = 0.0
    for one in work.layers:
        tokens, square = work.tokens[one.name], one.columns**2
        seen = min(tokens, one.columns)
        flops += 2 * tokens * one.weights * 3 + 2 * tokens * square
        flops += 4 * seen * square + 2 * seen * one.weights + _rounding_flops(one, 1)
        flops += 2 * 2 * tokens * one.weights * (1 + 1 / work.frames)
    packed = int(average_bits / 8 * work.weights + 12 * sum(one.rows for one in work.layers))
    file = packed + 2 * work.other_weights
    peak = max(
        max(12 * one.columns**2, 4 * one.columns**2 + 16 * one.weights) for one in work.layers
    )
    inputs = max(
        sum(4 * work.tokens[one.name] * one.columns for one in stage) for stage in work.stages
    )
    rounding = peak + 4 * work.kept_states() + inputs + min(inputs, KEPT_BYTES) + file
    together = min(work.frames, CHECKED_FRAMES) / work.frames
    checking = file + 4 * work.other_weights + int(together * (inputs + 4 * work.kept_states()))
    memory = _PROGRAM_BYTES + _held(work) + max(rounding, checking)
    return Estimate(memory, 2 * file + packed, flops / rate + _reading_s(work, 6))


def flop_rate() -> float:
    """Operations a second of a float32 matrix product here, with the threads as they are."""
    size, rounds = 1024, 4
    matrix = torch.ones(size, size)
    torch.mm(matrix, matrix)
    began = time.perf_counter()
    for _ in range(rounds):
        torch.mm(matrix, matrix)
    return rounds * 2 * size**3 / (time.perf_counter() - began)


def _rounding_flops(layer: LinearLayer, widths: int) -> float:
    """Factor, grid search and compensated rounding of all rows at so many widths."""
    factor = _FACTOR_SLOWDOWN * 2 / 3 * layer.columns**3
    search = widths * 2 * CLIP_STEPS * _PASS_FLOPS * layer.weights
    rounding = widths * layer.weights * (layer.columns + _ROUNDING_FLOPS)
    return factor + search + rounding


def _held(work: Workload) -> int:
    return min(HELD_BYTES, 4 * (work.weights + work.other_weights))


def _reading_s(work: Workload, times: int) -> float:
    return times * 2 * (work.weights + work.other_weights) / _READ_BYTES_PER_S
