"""How long a whole OpenVLA-OFT takes on a GPU, packed and in bf16, and in how much memory."""

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.random_network import (
    MIXED,
    RandomWeights,
    Recipe,
    float_network,
    packed_network,
)
from qvla_ros.evaluate.turns import time_in_turns
from qvla_ros.kernels.cuda_graph import GraphRecorder
from qvla_ros.kernels.fused_ops import FusedOps
from qvla_ros.kernels.fused_reference import REFERENCE
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.released_layout import read_llama, read_towers
from qvla_ros.models.vision_transformer import TowerConfig
from qvla_ros.policy.cuda_network import PLANNED, DeviceNetwork

EAGER, GRAPH = "bf16", "bf16, graph"
PACKED_16, PACKED_8, PACKED_8_EAGER = "A16, graph", "A8, graph", "A8"
PROMPT = {1: 37, 2: 38}
"""Tokens of the prompt by images, so that the Llama sees 351 and 608 tokens."""

_TINY = (
    TowerConfig(32, 3, 2, 64, 28, 14, registers=2, class_token=True, layer_scale=True),
    TowerConfig(24, 3, 2, 40, 28, 14, attention_pool=True),
)
_TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 272,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@dataclass(frozen=True, slots=True)
class NetworkTimes:
    """One network in one form.

    Attributes:
        name: Which form.
        images: Cameras.
        p50_ms: Median from inputs on the CPU to actions on the CPU.
        p99_ms: The same, 99th percentile.
        resident_bytes: Memory of the device that the weights take.
        peak_bytes: The most that was taken while it ran, above what was taken before it was made.
        plan: How it was run.
        obstacle: Why no graph was replayed; ``None`` where one was.
    """

    name: str
    images: int
    p50_ms: float
    p99_ms: float
    resident_bytes: int
    peak_bytes: int
    plan: str
    obstacle: str | None

    @property
    def trouble(self) -> str | None:
        """Why it did not run as its name says; ``None`` if it did."""
        if self.name in (GRAPH, PACKED_16, PACKED_8) and self.obstacle is not None:
            return self.obstacle
        if self.name in (PACKED_16, PACKED_8, PACKED_8_EAGER):
            return _unplanned(self.plan)
        return None

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return {**asdict(self), "trouble": self.trouble}


@dataclass(frozen=True, slots=True)
class _Form:
    """A network that can be called, and the memory that it took alone."""

    run: DeviceNetwork
    resident_bytes: int
    peak_bytes: int


def oft_config(images: int, tiny: bool = False) -> OpenVlaOftConfig:
    """The released sizes, or ones for a dry run."""
    towers = _TINY if tiny else read_towers({"vision_backbone_id": "dinosiglip-vit-so-224px"})
    llama = read_llama({"text_config": _TINY_LLAMA if tiny else {}})
    return OpenVlaOftConfig(towers, llama, images, horizon=8, action_dim=7, state_dim=8)


def random_inputs(config: OpenVlaOftConfig, dtype: torch.dtype, seed: int = 0) -> ModelInputs:
    """One observation of noise, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    side = config.towers[0].image_size
    return ModelInputs(
        pixels=torch.randn(1, 6 * config.views, side, side, generator=generator).to(dtype),
        token_ids=torch.randint(3, 200, (1, PROMPT[config.views]), generator=generator),
        end_token_id=2,
        state=torch.randn(1, config.state_dim, generator=generator).to(dtype),
    )


def bench_networks(
    images: int, device: torch.device, ops: FusedOps, repeats: int, tiny: bool
) -> list[NetworkTimes]:
    """Make all forms of one network with random weights, and time them in turns."""
    config = oft_config(images, tiny)
    inputs = random_inputs(config, torch.bfloat16)
    weights = RandomWeights(device)

    def bf16() -> OpenVlaOft:
        return float_network(config, weights, torch.bfloat16)

    def packed(bits: int) -> OpenVlaOft:
        return packed_network(config, weights, torch.bfloat16, Recipe(MIXED, bits))

    forms = {GRAPH: _form(bf16, device, None, inputs)}
    forms[EAGER] = _unrecorded(forms[GRAPH], device, inputs)
    forms[PACKED_16] = _form(lambda: packed(16), device, ops, inputs)
    forms[PACKED_8] = _form(lambda: packed(8), device, ops, inputs)
    forms[PACKED_8_EAGER] = _unrecorded(forms[PACKED_8], device, inputs)
    runs = {name: _call(form, inputs) for name, form in forms.items()}
    seconds = time_in_turns(runs, repeats)
    return [
        NetworkTimes(
            name=name,
            images=images,
            p50_ms=1e3 * statistics.median(times),
            p99_ms=1e3 * sorted(times)[math.ceil(0.99 * len(times)) - 1],
            resident_bytes=forms[name].resident_bytes,
            peak_bytes=forms[name].peak_bytes,
            plan=forms[name].run.plan,
            obstacle=forms[name].run.obstacle,
        )
        for name, times in seconds.items()
    ]


def network_error(device: torch.device, ops: FusedOps, bits: int) -> float:
    """Relative error of a tiny packed network against its oracle: fused, recorded and replayed.

    It is asked twice with a recording, so that what a replay leaves from the inputs before shows;
    in float16, whose rounding is finer than that of bfloat16 and which takes the same kernels.

    Raises:
        ConfigurationError: It was not run by the plan, or not recorded where that is possible.
    """
    config = oft_config(1, tiny=True)
    answers = []
    for place, steps in ((torch.device("cpu"), REFERENCE), (device, ops)):
        network = packed_network(
            config, RandomWeights(torch.device("cpu")), torch.float16, Recipe(MIXED, bits)
        )
        run = DeviceNetwork(network, place, steps, _recorder(place))
        answers.append([run(random_inputs(config, torch.float16, seed)) for seed in (0, 1)])
        trouble = _unplanned(run.plan) or (run.obstacle if place.type == "cuda" else None)
        if trouble:
            raise ConfigurationError(f"the tiny network, A{bits}: {trouble}")
    return max(
        float((answer - expected).norm() / expected.norm())
        for expected, answer in zip(*answers, strict=True)
    )


def _unplanned(plan: str) -> str | None:
    return None if plan.startswith(PLANNED) else plan


def _form(
    make: Callable[[], OpenVlaOft], device: torch.device, ops: FusedOps | None, inputs: ModelInputs
) -> _Form:
    gc.collect()
    before = _allocated(device)
    run = DeviceNetwork(make(), device, ops, _recorder(device))
    gc.collect()
    resident = _allocated(device) - before
    return _Form(run, resident, resident + _extra_bytes(run, device, inputs))


def _unrecorded(form: _Form, device: torch.device, inputs: ModelInputs) -> _Form:
    run = form.run.unrecorded()
    extra = _extra_bytes(run, device, inputs)
    return _Form(run, form.resident_bytes, form.resident_bytes + extra)


def _extra_bytes(run: DeviceNetwork, device: torch.device, inputs: ModelInputs) -> int:
    """What running takes beside the weights, a graph's own memory included."""
    before = _allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        run(inputs)
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0


def _recorder(device: torch.device) -> GraphRecorder | None:
    return GraphRecorder() if device.type == "cuda" else None


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _call(form: _Form, inputs: ModelInputs) -> Callable[[], object]:
    return lambda: form.run(inputs)
