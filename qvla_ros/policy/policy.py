"""A network with its processing, ready to answer observations: from a checkpoint or a model folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.checkpoint.faults import CheckpointFault
from qvla_ros.checkpoint.reader import PackedCheckpoint, read_checkpoint
from qvla_ros.checkpoint.tensor_names import FLOAT_PREFIX, GOLDEN_TENSOR, TOKENIZER_TENSOR
from qvla_ros.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from qvla_ros.kernels.cuda_device import device_errors, resolve_device
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.selection import AUTO
from qvla_ros.models.families import FAMILIES, config_from_json
from qvla_ros.models.network import ModelInputs, VlaNetwork
from qvla_ros.models.processing import Processing, ProcessingSettings
from qvla_ros.models.registry import (
    empty_network,
    fill_network,
    load_model,
    replace_module,
)
from qvla_ros.observation import Observation
from qvla_ros.policy.cuda_network import on_cuda
from qvla_ros.policy.inference import Inference
from qvla_ros.policy.self_test import TestedPolicy, require_golden_answer


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """Which policy this is.

    Attributes:
        model_id: Name of the model.
        checkpoint_sha256: Identity of the packed checkpoint, or of the float model folder.
        quant_tag: How it is quantized, e.g. ``"mixed-4.00bit"`` or ``"float32"``.
    """

    model_id: str
    checkpoint_sha256: str
    quant_tag: str


class Policy:
    """Answers observations with action chunks.

    Attributes:
        golden_actions: ``float32 [horizon, action_dim]``, what the checkpoint's maker got for
            ``golden_observation``; ``None`` if the checkpoint does not tell.
    """

    def __init__(
        self,
        network: VlaNetwork,
        processing: Processing,
        identity: PolicyIdentity,
    ) -> None:
        """Put a policy together."""
        self.network = network
        self._run: Callable[[ModelInputs], torch.Tensor] = network
        self.processing = processing
        self.identity = identity
        self.golden_actions: np.ndarray | None = None
        self._robot = processing.settings.robot
        self._dtype = network.projector.fc1.weight.dtype

    @property
    def image_names(self) -> tuple[str, ...]:
        """Cameras in the network's order."""
        return self._robot.image_names

    @property
    def state_dim(self) -> int:
        """Numbers in the proprioception vector."""
        return self._robot.state_dim

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the proprioception numbers."""
        return self._robot.state_names

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action dimensions."""
        return self._robot.action_names

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self._robot.action_dim

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self._robot.horizon

    @property
    def period_ns(self) -> int:
        """Time between two actions, nanoseconds."""
        return self._robot.period_ns

    @property
    def model_id(self) -> str:
        """Name of the model."""
        return self.identity.model_id

    @property
    def checkpoint_sha256(self) -> str:
        """Identity of the weights."""
        return self.identity.checkpoint_sha256

    @property
    def quant_tag(self) -> str:
        """How the weights are quantized, in a word."""
        return self.identity.quant_tag

    def run_by(self, run: Callable[[ModelInputs], torch.Tensor]) -> None:
        """Let ``run`` answer for the network."""
        self._run = run

    @property
    def execution(self) -> str:
        """How the network is run, in words; on CUDA also why not as fast as it could be."""
        return str(getattr(self._run, "description", "module by module"))

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of weights by kind: ``packed_weights`` and ``float_weights``."""
        packed = sum(
            module.memory_bytes()
            for module in self.network.modules()
            if isinstance(module, QuantizedLinear)
        )
        floats = sum(parameter.nbytes for parameter in self.network.parameters())
        return {"packed_weights": packed, "float_weights": floats}

    def infer(self, observation: Observation) -> Inference:
        """Answer one observation.

        Raises:
            ConfigurationError: A camera is missing, or the state has another size.
        """
        started = time.perf_counter()
        inputs = self.processing.prepare(observation)
        prepared = time.perf_counter()
        normalized = self.normalized_actions(inputs)[0]
        answered = time.perf_counter()
        actions = self.processing.robot_actions(normalized.numpy())
        chunk = ActionChunk(observation.stamp_ns, self.period_ns, actions)
        finished = time.perf_counter()
        return Inference(
            chunk=chunk,
            stage_ms={
                "process": 1e3 * (prepared - started),
                "model": 1e3 * (answered - prepared),
                "postprocess": 1e3 * (finished - answered),
            },
        )

    def normalized_actions(self, inputs: ModelInputs) -> torch.Tensor:
        """Run the network: float32 ``[batch, horizon, action_dim]`` in normalised space."""
        with torch.inference_mode():
            return self._run(
                ModelInputs(
                    pixels=inputs.pixels.to(self._dtype),
                    token_ids=inputs.token_ids,
                    end_token_id=inputs.end_token_id,
                    state=inputs.state.to(self._dtype),
                )
            )


def load_policy(
    path: Path | str,
    kernel: str = AUTO,
    compute_dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Policy:
    """Load a packed checkpoint; the weights stay packed, and go straight to the device.

    On CUDA the policy must first give the checkpoint's golden answer: no kernel moves a robot on a
    GPU where it computes something else.

    Args:
        path: Checkpoint file.
        kernel: Name of a kernel, for tests and measurements.
        compute_dtype: Of the activations; BF16 where the processor multiplies it, else float32.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        CheckpointError: The file is corrupt, or does not hold a network of its family.
        ConfigurationError: There is no such device, or it does not give the golden answer.
    """
    place = resolve_device(device)
    dtype = compute_dtype or default_compute_dtype(place)
    policy = policy_of(read_checkpoint(path, device=place), kernel, dtype)
    if place.type != "cpu":
        _take_to_gpu(policy, place, kernel)
    return policy


def policy_of(
    checkpoint: PackedCheckpoint,
    kernel: str = AUTO,
    compute_dtype: torch.dtype | None = None,
) -> Policy:
    """The policy of a packed checkpoint, run module by module; see ``load_policy``.

    It takes the tensors that it converts out of ``checkpoint``.
    """
    manifest = checkpoint.manifest
    network = _packed_network(checkpoint, kernel, compute_dtype or default_compute_dtype())
    settings = ProcessingSettings.from_json(manifest.processing)
    identity = PolicyIdentity(
        manifest.model_id, manifest.sha256, f"mixed-{manifest.plan.average_bits_per_weight:.2f}bit"
    )
    policy = Policy(network, Processing(settings, _tokenizer_json(checkpoint)), identity)
    golden = checkpoint.tensors.get(GOLDEN_TENSOR)
    policy.golden_actions = None if golden is None else golden.numpy()
    return policy


def _take_to_gpu(policy: Policy, place: torch.device, kernel: str) -> None:
    """Plan the run there, and ask for the golden answer.

    The checkpoint must be out of memory by now: layers that are joined take the place of those
    that were read, and would otherwise stand beside them.
    """
    try:
        policy.run_by(on_cuda(policy.network, place, kernel))
        torch.cuda.empty_cache()  # the others on this machine may need what joining has set free
        require_golden_answer(cast(TestedPolicy, policy))
    except device_errors() as error:
        raise ConfigurationError(
            f"this GPU cannot run the policy: {type(error).__name__}: {error}; choose the device "
            "cpu, or forbid its kernels with QVLA_TRITON=0"
        ) from error


def float_policy(
    folder: Path,
    unnorm_key: str | None = None,
    robot: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Load a model folder as it is: the reference that quantized policies are compared with.

    Raises:
        UnsupportedModelError: See ``load_model``.
    """
    model = load_model(Path(folder), unnorm_key, robot, dtype)
    identity = PolicyIdentity(model.model_id, model.fingerprint, str(dtype).removeprefix("torch."))
    return Policy(model.network, model.processing, identity)


def default_compute_dtype(device: torch.device | None = None) -> torch.dtype:
    """BF16 on CUDA, and where oneDNN has instructions for it, else float32; never float16 on a CPU."""
    if device is not None and device.type != "cpu":
        return torch.bfloat16
    # A build without oneDNN (as on some Jetsons) does not have the question either.
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _packed_network(checkpoint: PackedCheckpoint, kernel: str, dtype: torch.dtype) -> VlaNetwork:
    manifest = checkpoint.manifest
    if manifest.family not in FAMILIES:
        raise CheckpointError(
            f"the checkpoint is of the family {manifest.family!r}; known: {', '.join(FAMILIES)}",
            fault=CheckpointFault.NETWORK,
        )
    network = empty_network(config_from_json(manifest.family, manifest.model_config))
    parameters = _taken_parameters(checkpoint, dtype)
    _require_layers(network, checkpoint)
    for name, packed in checkpoint.layers.items():
        bias = parameters.pop(f"{name}.bias", None)
        _require_bias(name, bias, cast(nn.Linear, network.get_submodule(name)).bias)
        replace_module(network, name, QuantizedLinear(packed, bias, kernel))
    try:
        fill_network(network, parameters, "the checkpoint")
    except UnsupportedModelError as error:
        raise CheckpointError(str(error), fault=CheckpointFault.NETWORK) from error
    return network


def _taken_parameters(checkpoint: PackedCheckpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The unpacked parameters, out of the checkpoint, so that none is held in two dtypes."""
    names = list(checkpoint.parameters())
    return {name: checkpoint.tensors.pop(FLOAT_PREFIX + name).to(dtype) for name in names}


def _require_layers(network: VlaNetwork, checkpoint: PackedCheckpoint) -> None:
    wanted = {(layer.name, layer.rows, layer.columns) for layer in network.linear_layers()}
    found = {(layer.name, layer.rows, layer.columns) for layer in checkpoint.layers.values()}
    for name, rows, columns in sorted(found ^ wanted):
        raise CheckpointError(
            f"the layer {name!r} [{rows}, {columns}] is not in both the checkpoint and the "
            "network that its manifest describes",
            fault=CheckpointFault.NETWORK,
        )


def _require_bias(name: str, bias: torch.Tensor | None, wanted: torch.Tensor | None) -> None:
    found = None if bias is None else tuple(bias.shape)
    expected = None if wanted is None else tuple(wanted.shape)
    if found != expected:
        raise CheckpointError(
            f"the bias of {name!r} has the shape {found}, the network wants {expected}",
            fault=CheckpointFault.NETWORK,
        )


def _tokenizer_json(checkpoint: PackedCheckpoint) -> str:
    text = checkpoint.tensors.get(TOKENIZER_TENSOR)
    if text is None:
        raise CheckpointError("the checkpoint has no tokenizer", fault=CheckpointFault.NETWORK)
    return text.numpy().tobytes().decode("utf-8")
