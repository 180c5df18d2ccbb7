"""A packed network on a GPU: its blocks run by fused steps, all of it recorded as a CUDA graph."""

import threading
from collections.abc import Callable
from copy import copy
from dataclasses import fields, replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlamaModel

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.cuda_graph import GraphCache, GraphRecorder, Recorder
from qvla_ros.kernels.fused_ops import FusedOps
from qvla_ros.kernels.selection import select_kernel
from qvla_ros.kernels.triton_fused import TRITON
from qvla_ros.models.network import ACTIONS, ModelInputs, VlaNetwork
from qvla_ros.models.openvla_oft import OpenVlaOft
from qvla_ros.models.stages import Stage, State, run_stages
from qvla_ros.models.vision_backbone import TOWERS
from qvla_ros.models.vision_transformer import Block, VisionTransformer
from qvla_ros.policy.fused_blocks import FusedBlock, llama_block, run_blocks, vision_block

PLANNED = "fused steps"
"""How the description of a plan begins that is not the modules'."""

BUSY_S = 5.0
"""How long a call waits for the one before it, seconds."""


class DeviceNetwork:
    """Answers like the network itself, with inputs and answer on the CPU.

    Attributes:
        network: The modules.
        plan: How it is run, in words.
    """

    def __init__(
        self,
        network: OpenVlaOft,
        device: torch.device,
        ops: FusedOps | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Plan the run.

        Args:
            network: Packed. It stays usable as a module on the device, but for the embedding,
                which is kept and read on the CPU: a prompt needs few of its many rows.
            device: Where the network is moved to.
            ops: The fused steps; ``None`` to run the modules.
            recorder: Of CUDA graphs; ``None`` to launch every kernel each time.
        """
        self.network = network.to(device)
        network.llama.embed_tokens.to("cpu")
        stages, self.plan = _plan(network, ops)
        self._device = device
        self._function = partial(_run, stages)
        self._run = GraphCache(self._function, device, recorder)
        self._busy = threading.Lock()

    def unrecorded(self) -> "DeviceNetwork":
        """The same, but every kernel is launched each time."""
        other = copy(self)
        other._run = GraphCache(self._function, self._device, None)
        return other

    @property
    def obstacle(self) -> str | None:
        """Why no graph is replayed; ``None`` if one is."""
        return self._run.obstacle

    @property
    def description(self) -> str:
        """Plan and obstacle in one line."""
        return f"{self.plan} on {self._device}; {self.obstacle or 'recorded as CUDA graphs'}"

    @torch.inference_mode()
    def __call__(self, inputs: ModelInputs) -> Tensor:
        """Normalised actions, float32 ``[batch, horizon, action_dim]`` on the CPU.

        A recording has one place for its inputs. A worker that was left behind, because it was
        slow, must not find its place taken, nor its answer given to another.

        Raises:
            RuntimeError: Another call has not ended within ``BUSY_S``.
        """
        state = self.network.first_state(inputs)
        if not self._busy.acquire(timeout=BUSY_S):
            raise RuntimeError(f"another inference has held the device for {BUSY_S:g} s")
        try:
            return self._run(state).to("cpu", copy=True)
        finally:
            self._busy.release()


def on_cuda(
    network: VlaNetwork, device: torch.device, kernel: str
) -> Callable[[ModelInputs], Tensor]:
    """The fastest way that there is to run a packed network on a GPU."""
    if not isinstance(network, OpenVlaOft):  # decodes token by token: no fixed sequence of steps
        return partial(_run_modules, network.to(device), device)
    choice = select_kernel(device, network.projector.fc1.weight.dtype, kernel)
    ops = TRITON if choice.name == "triton" else None
    return DeviceNetwork(network, device, ops, GraphRecorder())


def fused_stages(network: OpenVlaOft, ops: FusedOps) -> list[Stage]:
    """The network's stages, with all blocks of a tower, and all layers of the Llama, as one.

    Raises:
        ConfigurationError: A block has no fused form.
    """
    stages: list[Stage] = []
    for name, members in groupby(network.stages(), lambda stage: _without_index(stage.name)):
        first = next(members)
        if first.name != name:
            first = Stage(name, first.reads, first.writes, _fused(network, first.writes, ops))
        stages.append(first)
    return stages


def _fused(network: OpenVlaOft, writes: str, ops: FusedOps) -> Callable[[Tensor], Tensor]:
    """All blocks of the tower, or all layers of the Llama."""
    if writes in TOWERS:
        tower = cast(VisionTransformer, network.vision_backbone.get_submodule(writes))
        blocks = [vision_block(cast(Block, block)) for block in tower.blocks]
        return lambda tokens: tower.patch_features(run_blocks(ops, blocks, tokens, None))
    llama = network.llama
    return partial(
        _run_llama, ops, llama, [llama_block(layer, llama.config) for layer in llama.layers]
    )


def _plan(network: OpenVlaOft, ops: FusedOps | None) -> tuple[list[Stage], str]:
    if ops is None:
        return network.stages(), "module by module"
    try:
        return fused_stages(network, ops), f"{PLANNED} in {ops.name}"
    except ConfigurationError as error:
        return network.stages(), f"module by module: {error}"


def _run_modules(network: VlaNetwork, device: torch.device, inputs: ModelInputs) -> Tensor:
    tensors: dict[str, Any] = {
        field.name: value.to(device)
        for field in fields(inputs)
        if isinstance(value := getattr(inputs, field.name), Tensor)
    }
    return network(replace(inputs, **tensors)).cpu()


def _run(stages: list[Stage], state: State) -> Tensor:
    return run_stages(stages, state)[ACTIONS]


def _without_index(name: str) -> str:
    """``...blocks.3`` is one of ``...blocks``; other names stay."""
    parent, _, last = name.rpartition(".")
    return parent if last.isdecimal() else name


def _run_llama(
    ops: FusedOps, llama: LlamaModel, blocks: list[FusedBlock], hidden: Tensor
) -> Tensor:
    places = torch.arange(hidden.shape[1], device=hidden.device)[None]
    cosines, sines = llama.rotary_emb(hidden, places)
    return run_blocks(ops, blocks, hidden, (cosines[0], sines[0]))
