"""A whole network, packed and in bf16."""

import pytest
from tiny_model import tiny_checkpoint, tiny_folder

from qvla_ros.evaluate.model_bench import bench_model, set_activation_bits
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.policy.policy import load_policy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return tiny_folder(folder / "model"), tiny_checkpoint(folder)


def test_every_variant_is_timed_against_bf16(files) -> None:
    result = bench_model(*files, repeats=1)
    assert list(result.milliseconds) == ["bf16", "packed", "packed_a16", "packed_a8"]
    assert result.speed["bf16"] == 1.0
    assert result.memory_bytes["bf16"]["packed_weights"] == 0
    assert result.memory_bytes["packed"]["packed_weights"] > 0
    total = {name: sum(kinds.values()) for name, kinds in result.memory_bytes.items()}
    assert result.weight_ratio == total["packed"] / total["bf16"]


def test_all_layers_get_the_activation_bits(files) -> None:
    policy = load_policy(files[1])
    set_activation_bits(policy, 8)
    layers = [m for m in policy.network.modules() if isinstance(m, QuantizedLinear)]
    assert layers
    assert {layer.packed.activation_bits for layer in layers} == {8}
