"""Run by test_triton.py in a process of its own: what Triton would compile for a whole network.

Every launch goes through Triton's own binding of arguments, for a GPU that is not here; nothing is
compiled and nothing launched, so that answers are old memory.
"""

from dataclasses import replace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from qvla_ros.evaluate.gpu_networks import oft_config, random_inputs
from qvla_ros.evaluate.random_network import MIXED, RandomWeights, Recipe, packed_network
from qvla_ros.kernels.triton_fused import TRITON
from qvla_ros.policy.cuda_network import DeviceNetwork

CPU = torch.device("cpu")
asked: list[tuple[str, str]] = []


class Elsewhere:
    """An H100, as far as binding asks."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def remember(kernel: JITFunction, key: str, *_: object) -> None:
    asked.append((kernel.fn.__name__, key))


def compiled_for(network: DeviceNetwork, prompt: int) -> set[tuple[str, str]]:
    """Kernels and their specialisations for a prompt of that many tokens."""
    asked.clear()
    inputs = random_inputs(network.network.config, torch.bfloat16)
    network(replace(inputs, token_ids=inputs.token_ids[:, :prompt]))
    return set(asked)


if __name__ == "__main__":
    driver.set_active(Elsewhere())
    JITFunction._do_compile = remember
    JITFunction.__getitem__ = lambda self, grid: (
        lambda *args, **kwargs: self.run(*args, grid=grid, warmup=True, **kwargs)
    )
    for bits in (16, 8):
        network = packed_network(
            oft_config(1, tiny=True), RandomWeights(CPU), torch.bfloat16, Recipe(MIXED, bits)
        )
        run = DeviceNetwork(network, CPU, TRITON)
        first = compiled_for(run, 37)
        names = {name for name, _ in first}
        product = "multiply_integers" if bits == 8 else "multiply_floats"
        assert names == {product, "activate_tokens", "add_norm_tokens", "rotate_heads"}, names
        for prompt in (36, 34, 20):  # 98, 96 and 82 tokens: some lengths are more even than others
            assert compiled_for(run, prompt) == first
    print("all cases passed: 8")
