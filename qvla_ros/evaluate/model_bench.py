"""How long a whole network takes: packed, against the same network in bf16."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qvla_ros.evaluate.turns import relative_speed, speed_interval, time_in_turns
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.registry import replace_module
from qvla_ros.observation import Observation
from qvla_ros.policy.policy import Policy, float_policy, load_policy

BASELINE = "bf16"
"""What the speeds compare with: the float model's folder in bf16."""


@dataclass(frozen=True, slots=True)
class ModelBench:
    """What ``qvla bench model`` found.

    Attributes:
        milliseconds: Median time of the network by variant: ``"bf16"``, ``"packed"`` (as stored),
            ``"packed_a16"`` and ``"packed_a8"`` (all layers with those activations).
        speed: Speed relative to bf16 by variant, the median of the turns: more than 1 is faster.
        speed_interval: 95 % interval of each.
        memory_bytes: Weights by kind of each variant.
        weight_ratio: Packed weights over the bf16 weights of the same layers and parameters.
        threads: PyTorch's threads.
        repeats: Inferences behind each median.
    """

    milliseconds: dict[str, float]
    speed: dict[str, float]
    speed_interval: dict[str, tuple[float, float]]
    memory_bytes: dict[str, dict[str, int]]
    weight_ratio: float
    threads: int
    repeats: int

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


def bench_model(
    folder: Path, checkpoint: Path, unnorm_key: str | None = None, repeats: int = 20
) -> ModelBench:
    """Time the network of a model folder in bf16 and of its packed checkpoint, in turns.

    Args:
        folder: The float model.
        checkpoint: A packed checkpoint of it.
        unnorm_key: See ``float_policy``.
        repeats: Inferences of each variant; the median counts.

    Raises:
        QvlaError: One of the two cannot be loaded.
    """
    policies = {BASELINE: float_policy(folder, unnorm_key, dtype=torch.bfloat16)}
    policies["packed"] = load_policy(checkpoint, compute_dtype=torch.bfloat16)
    for bits in (16, 8):
        policy = load_policy(checkpoint, compute_dtype=torch.bfloat16)
        set_activation_bits(policy, bits)
        policies[f"packed_a{bits}"] = policy
    seconds = time_in_turns({name: _inference(p) for name, p in policies.items()}, repeats)
    memory = {name: policy.memory_bytes() for name, policy in policies.items()}
    return ModelBench(
        milliseconds={name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        speed=relative_speed(seconds, BASELINE),
        speed_interval=speed_interval(seconds, BASELINE),
        memory_bytes=memory,
        weight_ratio=sum(memory["packed"].values()) / sum(memory[BASELINE].values()),
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def set_activation_bits(policy: Policy, bits: int) -> None:
    """Make every packed layer of a policy multiply with these activations."""
    for name, module in list(policy.network.named_modules()):
        if isinstance(module, QuantizedLinear):
            packed = replace(module.packed, activation_bits=bits)
            layer = QuantizedLinear(packed, module.bias, module.kernel_name)
            replace_module(policy.network, name, layer)


def synthetic_observation(policy: Policy) -> Observation:
    """Noise in the policy's shapes: what an image shows does not change what it costs."""
    random = np.random.default_rng(0)
    images = {
        name: random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for name in policy.image_names
    }
    state = np.zeros(policy.state_dim, dtype=np.float32)
    return Observation(
        stamp_ns=0, images=images, state=state, instruction="put the bowl on the plate"
    )


def _inference(policy: Policy) -> Callable[[], object]:
    inputs = policy.processing.prepare(synthetic_observation(policy))
    return lambda: policy.normalized_actions(inputs)
