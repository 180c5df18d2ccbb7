"""The plan of fused steps for GPUs: on a CPU, in PyTorch, against the network's own modules."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint, tiny_observation

from qvla_ros.checkpoint import reader
from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.gpu_networks import oft_config, random_inputs
from qvla_ros.evaluate.random_network import RandomWeights, Recipe, packed_network
from qvla_ros.kernels.fused_reference import REFERENCE
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.registry import replace_module
from qvla_ros.policy import cuda_network
from qvla_ros.policy import policy as policy_module
from qvla_ros.policy.cuda_network import DeviceNetwork, fused_stages
from qvla_ros.policy.policy import load_policy
from qvla_ros.policy.self_test import require_golden_answer

CPU = torch.device("cpu")
MANY_PRUNED = {16: 0.1, 8: 0.15, 4: 0.15, 3: 0.1, 2: 0.1, 0: 0.4}


def random_network(bits: int = 16, groups: bool = False, views: int = 2):
    recipe = Recipe(MANY_PRUNED, bits, groups)
    return packed_network(oft_config(views, tiny=True), RandomWeights(CPU), torch.float32, recipe)


def packed_layers(network) -> list[QuantizedLinear]:
    return [m for m in network.modules() if isinstance(m, QuantizedLinear)]


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("groups", [False, True])
def test_the_plan_answers_as_the_modules_do(bits, groups) -> None:
    network = random_network(bits, groups)
    assert any(layer.input_columns is not None for layer in packed_layers(network))
    inputs = random_inputs(network.config, torch.float32)
    with torch.inference_mode():
        expected = network(inputs)
    run = DeviceNetwork(network, CPU, REFERENCE)
    assert run.plan == "fused steps in PyTorch"
    torch.testing.assert_close(run(inputs), expected, rtol=1e-4, atol=1e-6)


def test_layers_of_a_block_may_differ_in_their_activation_bits() -> None:
    network = random_network()
    for index, layer in enumerate(packed_layers(network)):
        packed = replace(layer.packed, activation_bits=(16, 8)[index % 2])
        replace_module(network, packed.name, QuantizedLinear(packed, layer.bias))
    inputs = random_inputs(network.config, torch.float32)
    with torch.inference_mode():
        expected = network(inputs)
    answer = DeviceNetwork(network, CPU, REFERENCE)(inputs)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


def test_a_batch_of_several_samples_is_not_mixed_up() -> None:
    network = random_network(views=1)
    inputs = [random_inputs(network.config, torch.float32, seed) for seed in (0, 1)]
    run = DeviceNetwork(network, CPU, REFERENCE)
    parts = [
        torch.cat([getattr(one, name) for one in inputs])
        for name in ("pixels", "token_ids", "state")
    ]
    both = run(replace(inputs[0], pixels=parts[0], token_ids=parts[1], state=parts[2]))
    torch.testing.assert_close(both, torch.cat([run(one) for one in inputs]))


def test_blocks_become_one_stage_and_the_others_stay() -> None:
    names = [stage.name for stage in fused_stages(random_network(), REFERENCE)]
    assert names == [
        "vision_backbone.featurizer.patch_embed",
        "vision_backbone.featurizer.blocks",
        "vision_backbone.fused_featurizer.patch_embed",
        "vision_backbone.fused_featurizer.blocks",
        "projector",
        "language_model.model.layers",
        "action_head",
    ]


def test_a_network_without_a_plan_is_run_by_its_modules_and_says_why() -> None:
    network = random_network()
    network.llama.config.hidden_act = "gelu"
    run = DeviceNetwork(network, CPU, REFERENCE)
    assert run.plan == "module by module: the activation 'gelu' has no fused step"
    assert run(random_inputs(network.config, torch.float32)).shape == (1, 8, 7)
    assert run.obstacle is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("device"))


@pytest.fixture
def as_if_cuda(monkeypatch):
    """What happens on CUDA, but in the CPU's memory and without graphs."""
    elsewhere = torch.device("meta")
    monkeypatch.setattr(policy_module, "resolve_device", lambda _: elsewhere)
    monkeypatch.setattr(policy_module, "default_compute_dtype", lambda _: torch.float32)
    monkeypatch.setattr(
        policy_module, "read_checkpoint", lambda path, device: read_checkpoint(path)
    )
    monkeypatch.setattr(
        policy_module, "on_cuda", lambda network, *_: DeviceNetwork(network, CPU, REFERENCE)
    )


@pytest.mark.usefixtures("as_if_cuda")
def test_a_policy_on_a_gpu_answers_like_the_one_on_the_cpu(checkpoint, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(policy_module, "require_golden_answer", asked.append)
    there = load_policy(checkpoint, device="cuda")
    assert asked == [there]
    assert there.execution == "fused steps in PyTorch on cpu; nothing is recorded here"
    monkeypatch.undo()
    here = load_policy(checkpoint, compute_dtype=torch.float32)
    actions = [p.infer(tiny_observation()).chunk.actions for p in (there, here)]
    np.testing.assert_allclose(*actions, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("as_if_cuda")
def test_joined_layers_do_not_stand_beside_those_that_were_read(checkpoint, monkeypatch) -> None:
    read = []

    def remember(path, device):
        found = read_checkpoint(path)
        name = next(name for name in found.layers if name.endswith("q_proj"))
        read.extend(weakref.ref(part.codes) for part in found.layers[name].segments)
        return found

    alive = []
    monkeypatch.setattr(policy_module, "read_checkpoint", remember)
    monkeypatch.setattr(
        policy_module,
        "require_golden_answer",
        lambda _: alive.extend(codes for codes in read if codes() is not None),
    )
    load_policy(checkpoint, device="cuda")
    assert read
    assert not alive


@pytest.mark.usefixtures("as_if_cuda")
def test_a_kernel_that_cannot_run_here_is_an_error_that_says_what_to_do(
    checkpoint, monkeypatch
) -> None:
    class OutOfResourcesError(Exception):
        """As Triton's: no kind of RuntimeError."""

    def fail(_: object) -> None:
        raise OutOfResourcesError("shared memory")

    monkeypatch.setattr(
        policy_module, "device_errors", lambda: (RuntimeError, OutOfResourcesError)
    )
    monkeypatch.setattr(policy_module, "require_golden_answer", fail)
    with pytest.raises(
        ConfigurationError, match=r"OutOfResourcesError: shared memory; .*QVLA_TRITON"
    ):
        load_policy(checkpoint, device="cuda")


def test_two_workers_do_not_share_the_place_of_a_recordings_inputs(monkeypatch) -> None:
    network = random_network()
    inputs = random_inputs(network.config, torch.float32)
    run = DeviceNetwork(network, CPU, REFERENCE)
    monkeypatch.setattr(cuda_network, "BUSY_S", 0.01)
    with run._busy, pytest.raises(RuntimeError, match="another inference has held the device"):
        run(inputs)
    assert run(inputs).shape == (1, 8, 7)


def test_a_policy_that_gives_another_answer_than_the_golden_one_is_refused(checkpoint) -> None:
    policy = load_policy(checkpoint)
    policy.golden_actions = np.full((policy.horizon, policy.action_dim), 5.0, np.float32)
    with pytest.raises(ConfigurationError, match=r"compute something else; choose the device cpu"):
        require_golden_answer(policy)
    policy.golden_actions = None
    with pytest.raises(ConfigurationError, match="no golden answer"):
        require_golden_answer(policy)


def test_what_goes_through_the_staging_arrives_whole(checkpoint, monkeypatch) -> None:
    here = read_checkpoint(checkpoint)
    monkeypatch.setattr(reader, "_STAGE_BYTES", 100)
    there = read_checkpoint(checkpoint, device=torch.device("cpu", 0))  # not the same as "cpu"
    assert there.tensors.keys() == here.tensors.keys()
    assert all(torch.equal(there.tensors[name], here.tensors[name]) for name in here.tensors)
    for name, layer in here.layers.items():
        for one, other in zip(layer.segments, there.layers[name].segments, strict=True):
            assert torch.equal(one.codes, other.codes)
