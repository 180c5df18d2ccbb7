"""From a model folder to a float network with its processing, and from settings to an empty network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from qvla_ros.errors import CheckpointError, UnsupportedModelError
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.processing import Processing, ProcessingSettings
from qvla_ros.models.released_folder import (
    SmallFiles,
    find_shards,
    fingerprint,
    load_shards,
    load_side_file,
    open_small_files,
)
from qvla_ros.models.released_layout import dead_tensors, expected_tensors, read_llama, read_towers
from qvla_ros.models.robot_constants import RobotConstants, infer_robot_constants, robot_constants
from qvla_ros.models.vision_transformer import TowerConfig

FAMILY = "openvla_oft"
_LM_HEAD = "language_model.lm_head.weight"  # parallel decoding with an L1 head never calls it


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A float network and all that is needed to talk to it.

    Attributes:
        network: The network, in evaluation mode.
        processing: Its pre- and post-processing.
        model_id: Name of the folder.
        fingerprint: SHA-256 of the folder's files.
        bf16_bytes: Bytes of all tensors of the folder, dead ones included, stored in BF16.
    """

    network: OpenVlaOft
    processing: Processing
    model_id: str
    fingerprint: str
    bf16_bytes: int


def load_model(
    path: Path,
    unnorm_key: str | None = None,
    robot: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a released OpenVLA-OFT folder.

    Args:
        path: Model folder.
        unnorm_key: Data set whose statistics are used; needed when the folder has several.
        robot: Name in ``ROBOT_CONSTANTS``; found by the sizes of the head when absent.
        dtype: Of all floating-point parameters.

    Raises:
        UnsupportedModelError: A file is missing or does not fit; the message names it.
    """
    folder = open_small_files(path)
    head = load_side_file(path, "action_head")
    proprio = load_side_file(path, "proprio_projector")
    constants = _constants(robot, head, proprio)
    config = OpenVlaOftConfig(
        towers=read_towers(folder.config),
        llama=read_llama(folder.config),
        views=len(constants.image_names),
        horizon=constants.horizon,
        action_dim=constants.action_dim,
        state_dim=constants.state_dim,
    )
    expected = expected_tensors(config.towers, config.llama)
    dropped = dead_tensors(config.towers) | {_LM_HEAD}
    tensors = load_shards(find_shards(path), expected, dropped)
    tensors |= {f"action_head.{name}": tensor for name, tensor in head.items()}
    tensors |= {f"proprio_projector.{name}": tensor for name, tensor in proprio.items()}
    network = empty_network(config)
    fill_network(network, {name: tensor.to(dtype) for name, tensor in tensors.items()}, str(path))
    side_weights = sum(tensor.numel() for tensor in (*head.values(), *proprio.values()))
    shard_weights = sum(int(np.prod(shape)) for shape in expected.values())
    return LoadedModel(
        network=network,
        processing=Processing(
            processing_settings(folder, unnorm_key, constants), folder.tokenizer_json
        ),
        model_id=path.resolve().name,
        fingerprint=fingerprint(path),
        bf16_bytes=2 * (shard_weights + side_weights),
    )


def empty_network(config: OpenVlaOftConfig) -> OpenVlaOft:
    """Build the network without memory for its weights (they are on the ``meta`` device)."""
    with torch.device("meta"):
        network = OpenVlaOft(config)
    return network.eval()


def fill_network(network: OpenVlaOft, tensors: dict[str, Tensor], source: str) -> None:
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


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted path ``name`` of the network."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def config_from_json(value: Mapping[str, Any]) -> OpenVlaOftConfig:
    """Rebuild the network's configuration from a checkpoint.

    Raises:
        CheckpointError: A key is missing or unknown.
    """
    try:
        towers = tuple(TowerConfig(**tower) for tower in value["towers"])
        return OpenVlaOftConfig(**{**value, "towers": towers})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's model configuration is bad: {error}") from error


def _constants(
    robot: str | None, head: dict[str, Tensor], proprio: dict[str, Tensor]
) -> RobotConstants:
    for table, file, name in (
        (head, "action_head", "model.fc2.weight"),
        (proprio, "proprio_projector", "fc1.weight"),
    ):
        if name not in table:
            raise UnsupportedModelError(f"{file}--*checkpoint.pt lacks the tensor {name!r}")
    action_dim = head["model.fc2.weight"].shape[0]
    state_dim = proprio["fc1.weight"].shape[1]
    if robot is None:
        return infer_robot_constants(action_dim, state_dim)
    constants = robot_constants(robot)
    if (constants.action_dim, constants.state_dim) != (action_dim, state_dim):
        raise UnsupportedModelError(
            f"robot {robot!r} has {constants.action_dim} action and {constants.state_dim} state "
            f"dimensions, the model's head and projector have {action_dim} and {state_dim}"
        )
    return constants


def processing_settings(
    folder: SmallFiles, unnorm_key: str | None, robot: RobotConstants
) -> ProcessingSettings:
    """Read normalisation and statistics out of a folder's small files.

    Raises:
        UnsupportedModelError: The statistics are ambiguous, incomplete, or of another robot's size.
    """
    key = _unnorm_key(folder, unnorm_key)
    low, high = ("q01", "q99") if robot.normalization == "q99" else ("min", "max")
    try:
        action, state = folder.statistics[key]["action"], folder.statistics[key]["proprio"]
        mask = action.get("mask", [True] * len(action[low]))
        settings = ProcessingSettings(
            robot=robot,
            unnorm_key=key,
            action_low=tuple(action[low]),
            action_high=tuple(action[high]),
            action_mask=tuple(bool(flag) for flag in mask),
            state_low=tuple(state[low]),
            state_high=tuple(state[high]),
            image_size=int(folder.preprocessor["input_sizes"][0][-1]),
            means=tuple(tuple(mean) for mean in folder.preprocessor["means"]),
            stds=tuple(tuple(std) for std in folder.preprocessor["stds"]),
            center_crop=True,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise UnsupportedModelError(
            f"{folder.path}: statistics of {key!r} or preprocessor_config.json lack {error}"
        ) from error
    if (len(settings.action_low), len(settings.state_low)) != (robot.action_dim, robot.state_dim):
        raise UnsupportedModelError(
            f"{folder.path}: statistics of {key!r} have {len(settings.action_low)} action and "
            f"{len(settings.state_low)} state dimensions; robot {robot.name!r} has "
            f"{robot.action_dim} and {robot.state_dim}"
        )
    return settings


def _unnorm_key(folder: SmallFiles, unnorm_key: str | None) -> str:
    keys = sorted(folder.statistics)
    if unnorm_key is None and len(keys) == 1:
        return keys[0]
    if unnorm_key is None or unnorm_key not in folder.statistics:
        asked = "none was named" if unnorm_key is None else f"{unnorm_key!r} is not one of them"
        raise UnsupportedModelError(
            f"{folder.path} has statistics of {', '.join(keys) or 'no data set'}; {asked}: "
            "choose one with --unnorm-key"
        )
    return unnorm_key
