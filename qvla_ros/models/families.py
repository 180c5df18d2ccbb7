"""The families of models that are known: which network a folder or a checkpoint describes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from qvla_ros.errors import CheckpointError, UnsupportedModelError
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.openvla import OpenVla, OpenVlaConfig
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.released_folder import SmallFiles, load_side_file
from qvla_ros.models.released_layout import read_llama, read_towers, require_llama_sizes
from qvla_ros.models.robot_constants import (
    RobotConstants,
    infer_robot_constants,
    robot_constants,
    single_step,
)
from qvla_ros.models.typed_json import from_json

NetworkConfig = OpenVlaOftConfig | OpenVlaConfig

_LM_HEAD = "language_model.lm_head.weight"
_CROPPED = ("libero",)  # OpenVLA was fine-tuned on crops for these robots, and never before


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a model folder is to become.

    Attributes:
        robot: Its conventions.
        config: Of the network.
        center_crop: Whether it was trained on random crops.
        side_tensors: What stands beside the shards, by the network's names.
        dropped: Tensors of the shards that this family never runs.
    """

    robot: RobotConstants
    config: NetworkConfig
    center_crop: bool
    side_tensors: dict[str, Tensor]
    dropped: frozenset[str]


def plan_folder(folder: SmallFiles, robot: str | None) -> FolderPlan:
    """Decide by a folder's small files, and by the name of a robot where they leave that open.

    Raises:
        UnsupportedModelError: A side file is missing or bad, the robot does not fit, or
            ``config.json`` says what a checkpoint cannot carry.
    """
    plan = _PLANS[folder.family](folder, robot)
    try:
        from_json(type(plan.config), asdict(plan.config), "the network")
    except ValueError as error:
        raise UnsupportedModelError(
            f"{folder.path / 'config.json'}: {error} (llama is its text_config)"
        ) from error
    return plan


def empty_network_of(config: NetworkConfig) -> VlaNetwork:
    """A network of the configuration's family, its weights as PyTorch begins them."""
    return OpenVla(config) if isinstance(config, OpenVlaConfig) else OpenVlaOft(config)


def config_from_json(family: str, value: Mapping[str, Any]) -> NetworkConfig:
    """Rebuild a network's configuration from a checkpoint.

    Args:
        family: One of ``FAMILIES``.
        value: As ``dataclasses.asdict`` gave it.

    Raises:
        CheckpointError: A key is missing or unknown, or a value is of another type.
    """
    try:
        config = from_json(_CONFIGS[family], value, "model_config")
        require_llama_sizes(config.llama)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's model configuration is bad: {error}") from error
    return config


def _plan_oft(folder: SmallFiles, robot: str | None) -> FolderPlan:
    head = load_side_file(folder.path, "action_head")
    proprio = load_side_file(folder.path, "proprio_projector")
    constants = _constants(robot, head, proprio)
    config = OpenVlaOftConfig(
        towers=read_towers(folder.config),
        llama=read_llama(folder.config),
        views=len(constants.image_names),
        horizon=constants.horizon,
        action_dim=constants.action_dim,
        state_dim=constants.state_dim,
    )
    side = {f"action_head.{name}": tensor for name, tensor in head.items()}
    side |= {f"proprio_projector.{name}": tensor for name, tensor in proprio.items()}
    # Parallel decoding with an L1 head never calls the language model's own head.
    return FolderPlan(constants, config, True, side, frozenset({_LM_HEAD}))


def _constants(
    robot: str | None, head: dict[str, Tensor], proprio: dict[str, Tensor]
) -> RobotConstants:
    for table, file, name in (
        (head, "action_head", "model.fc2.weight"),
        (proprio, "proprio_projector", "fc1.weight"),
    ):
        if name not in table or table[name].ndim != 2:
            raise UnsupportedModelError(f"{file}--*checkpoint.pt lacks the matrix {name!r}")
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


def _plan_openvla(folder: SmallFiles, robot: str | None) -> FolderPlan:
    if robot is None:
        raise UnsupportedModelError(
            f"{folder.path}: the files of OpenVLA do not tell the robot; name it with --robot "
            "(libero or bridge)"
        )
    constants = single_step(robot_constants(robot))
    llama = read_llama(folder.config)
    bins, padding = (
        _whole_number(folder, key, default)
        for key, default in (("n_action_bins", 256), ("pad_to_multiple_of", 64))
    )
    try:
        config = OpenVlaConfig(
            towers=read_towers(folder.config),
            llama=llama,
            action_dim=constants.action_dim,
            action_bins=bins,
            vocabulary=int(llama["vocab_size"] or 0) - padding,
        )
    except ValueError as error:
        raise UnsupportedModelError(f"{folder.path / 'config.json'}: {error}") from error
    return FolderPlan(constants, config, robot in _CROPPED, {}, frozenset())


def _whole_number(folder: SmallFiles, key: str, default: int) -> int:
    value = folder.config.get(key, default)
    if type(value) is not int or value < 0:
        raise UnsupportedModelError(
            f"{folder.path / 'config.json'}: {key} must be a whole number, not {value!r}"
        )
    return value


_PLANS: dict[str, Callable[[SmallFiles, str | None], FolderPlan]] = {
    OpenVlaOft.family: _plan_oft,
    OpenVla.family: _plan_openvla,
}
_CONFIGS: dict[str, type[NetworkConfig]] = {
    OpenVlaOft.family: OpenVlaOftConfig,
    OpenVla.family: OpenVlaConfig,
}
FAMILIES = tuple(_CONFIGS)
"""Names of the families, as checkpoints carry them."""
