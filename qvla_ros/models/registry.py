"""From a model folder to a float network with its processing, and from settings to an empty network."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.families import NetworkConfig, empty_network_of, plan_folder
from qvla_ros.models.folder_settings import processing_settings
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.processing import Processing
from qvla_ros.models.released_folder import (
    find_shards,
    fingerprint,
    open_small_files,
    require_tensors,
)
from qvla_ros.models.released_layout import dead_tensors, expected_tensors
from qvla_ros.models.weight_source import (
    HeldWeight,
    Weight,
    fetch_weights,
    is_fetched,
    placeholder,
    shard_weights,
)


@dataclass(frozen=True)
class LoadedModel:
    """A float network and all that is needed to talk to it.

    Attributes:
        network: The network, in evaluation mode.
        processing: Its pre- and post-processing.
        folder: Where it was read from.
        bf16_bytes: Bytes of all tensors of the folder, dead ones included, stored in BF16.
    """

    network: VlaNetwork
    processing: Processing
    folder: Path
    bf16_bytes: int

    @property
    def model_id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the folder's files, read when it is first asked for: shards are large."""
        return fingerprint(self.folder)


def load_model(
    path: Path,
    unnorm_key: str | None = None,
    robot: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a released OpenVLA or OpenVLA-OFT folder.

    Args:
        path: Model folder.
        unnorm_key: Data set whose statistics are used; needed when the folder has several.
        robot: Name in ``ROBOT_CONSTANTS``; found by the sizes of the action head when absent,
            which autoregressive OpenVLA does not have.
        dtype: Of all floating-point parameters.

    Raises:
        UnsupportedModelError: A file is missing or does not fit; the message names it.
    """
    return _model(path, unnorm_key, robot, partial(_fill_at_once, dtype))


def open_model(path: Path, unnorm_key: str | None = None, robot: str | None = None) -> LoadedModel:
    """As ``load_model`` in float32, but the weights stay in the folder until they are needed.

    The network fetches them as it runs (``weight_source.py``); the folder must stay as it is.
    """
    return _model(path, unnorm_key, robot, _fill_by_fetching)


def _model(path: Path, unnorm_key: str | None, robot: str | None, fill: "_Fill") -> LoadedModel:
    folder = open_small_files(path)
    plan = plan_folder(folder, robot)
    expected = expected_tensors(plan.config.towers, plan.config.llama)
    dropped = dead_tensors(plan.config.towers) | plan.dropped
    shard_of = find_shards(path)
    require_tensors(shard_of, expected)
    weights: dict[str, Weight] = {
        name: weight for name, weight in shard_weights(shard_of).items() if name not in dropped
    }
    weights |= {name: HeldWeight(tensor) for name, tensor in plan.side_tensors.items()}
    network = empty_network(plan.config)
    fill(network, weights, str(path))
    side_numbers = sum(tensor.numel() for tensor in plan.side_tensors.values())
    shard_numbers = sum(map(math.prod, expected.values()))
    settings = processing_settings(folder, unnorm_key, plan.robot, plan.center_crop)
    return LoadedModel(
        network=network,
        processing=Processing(settings, folder.tokenizer_json),
        folder=path.resolve(),
        bf16_bytes=2 * (shard_numbers + side_numbers),
    )


def empty_network(config: NetworkConfig) -> VlaNetwork:
    """Build the network without memory for its weights (they are on the ``meta`` device).

    Raises:
        UnsupportedModelError: The configuration describes no network.
    """
    try:
        with torch.device("meta"):
            network = empty_network_of(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"no network has this configuration: {error}") from error
    return network.eval()


def fill_network(network: VlaNetwork, tensors: dict[str, Tensor], source: str) -> None:
    """Give every parameter its tensor, without a copy.

    Raises:
        UnsupportedModelError: A tensor is missing, unknown, or of another shape.
    """
    wanted = {name: parameter.shape for name, parameter in network.named_parameters()}
    for name in wanted.keys() & tensors.keys():
        if name.endswith("patch_embed.proj.weight"):
            tensors[name] = tensors[name].reshape(len(tensors[name]), -1)
        if tensors[name].shape != wanted[name]:
            raise UnsupportedModelError(
                f"{source}: {name!r} has shape {tuple(tensors[name].shape)}, "
                f"not {tuple(wanted[name])}"
            )
    for names, verdict in (
        (sorted(wanted.keys() - tensors.keys()), "missing"),
        (sorted(tensors.keys() - wanted.keys()), "unknown"),
    ):
        if names:
            raise UnsupportedModelError(f"{source}: {verdict} tensor {names[0]!r}")
    network.load_state_dict(tensors, strict=False, assign=True)
    # The rotary table is no parameter: building on the meta device leaves it empty.
    network.llama.rotary_emb = LlamaRotaryEmbedding(config=LlamaConfig(**network.config.llama))
    network.requires_grad_(False)


_Fill = Callable[[VlaNetwork, Mapping[str, Weight], str], None]


def _fill_at_once(
    dtype: torch.dtype, network: VlaNetwork, weights: Mapping[str, Weight], source: str
) -> None:
    tensors = {name: weight.read().to(dtype) for name, weight in weights.items()}
    fill_network(network, tensors, source)


def _fill_by_fetching(network: VlaNetwork, weights: Mapping[str, Weight], source: str) -> None:
    """Small parameters are read, the weights of layers and the embedding stay where they are."""
    wanted = {name for name, _ in network.named_parameters() if is_fetched(network, name)}
    tensors = {
        name: placeholder(weight) if name in wanted else weight.read().float()
        for name, weight in weights.items()
    }
    fill_network(network, tensors, source)
    shapes = {name: tuple(network.get_parameter(name).shape) for name in wanted}
    fetch_weights(network, {name: weights[name].reshaped(shapes[name]) for name in wanted})


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted path ``name`` of the network."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
