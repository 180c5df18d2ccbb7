"""From a model folder to a float network with its processing, and from settings to an empty network."""

from collections.abc import Mapping, Sequence
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
from qvla_ros.models.released_layout import (
    dead_tensors,
    expected_tensors,
    read_llama,
    read_towers,
    require_llama_sizes,
)
from qvla_ros.models.robot_constants import RobotConstants, infer_robot_constants, robot_constants
from qvla_ros.models.typed_json import from_json

FAMILY = "openvla_oft"
_RESIZING = "resize-naive"  # both sides scaled to the network's, whatever the aspect
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
    """Build the network without memory for its weights (they are on the ``meta`` device).

    Raises:
        UnsupportedModelError: The configuration describes no network.
    """
    try:
        with torch.device("meta"):
            network = OpenVlaOft(config)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"no network has this configuration: {error}") from error
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
        CheckpointError: A key is missing or unknown, or a value is of another type.
    """
    try:
        config = from_json(OpenVlaOftConfig, value, "model_config")
        require_llama_sizes(config.llama)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's model configuration is bad: {error}") from error
    if min(config.views, config.horizon, config.action_dim, config.state_dim) < 1:
        raise CheckpointError("the checkpoint's model configuration has a size below 1")
    return config


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
    _require_known_resizing(folder)
    try:
        action, state = folder.statistics[key]["action"], folder.statistics[key]["proprio"]
        return ProcessingSettings(
            robot=robot,
            unnorm_key=key,
            action_low=_numbers(action[low]),
            action_high=_numbers(action[high]),
            action_mask=tuple(map(bool, action.get("mask", [True] * robot.action_dim))),
            state_low=_numbers(state[low]),
            state_high=_numbers(state[high]),
            image_size=_image_size(folder),
            means=tuple(map(_numbers, folder.preprocessor["means"])),
            stds=tuple(map(_numbers, folder.preprocessor["stds"])),
            center_crop=True,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{folder.path}: statistics of {key!r} or preprocessor_config.json lack {error}"
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(
            f"{folder.path}: statistics of {key!r} or preprocessor_config.json: {error}"
        ) from error


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, str):
        raise ValueError(f"{values!r} is no list of numbers")
    return tuple(map(float, values))


def _image_size(folder: SmallFiles) -> int:
    """The side that both towers see, pixels."""
    stated = {int(side) for size in folder.preprocessor["input_sizes"] for side in size[-2:]}
    built = {tower.image_size for tower in read_towers(folder.config)}
    if stated != built or len(built) != 1:
        raise ValueError(
            f"input_sizes {sorted(stated)} must be one size, that of the towers {sorted(built)}"
        )
    return built.pop()


def _require_known_resizing(folder: SmallFiles) -> None:
    for name, file in (
        ("config.json", folder.config),
        ("preprocessor_config.json", folder.preprocessor),
    ):
        strategy = file.get("image_resize_strategy", _RESIZING)
        if strategy != _RESIZING:
            raise UnsupportedModelError(
                f"{folder.path / name}: image_resize_strategy is {strategy!r}; only "
                f"{_RESIZING!r} is supported"
            )


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
