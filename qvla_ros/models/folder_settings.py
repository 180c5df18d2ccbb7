"""How a model folder's observations and actions are scaled: statistics and image normalisation."""

from collections.abc import Sequence

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.processing import ProcessingSettings
from qvla_ros.models.released_folder import SmallFiles
from qvla_ros.models.released_layout import read_towers
from qvla_ros.models.robot_constants import RobotConstants

_RESIZING = "resize-naive"  # both sides scaled to the network's, whatever the aspect


def processing_settings(
    folder: SmallFiles, unnorm_key: str | None, robot: RobotConstants, center_crop: bool = True
) -> ProcessingSettings:
    """Read normalisation and statistics out of a folder's small files.

    Args:
        folder: The small files.
        unnorm_key: Data set whose statistics are used; needed if there are several.
        robot: Which of the numbers, and how many.
        center_crop: Whether the model was trained on random crops.

    Raises:
        UnsupportedModelError: The statistics are ambiguous, incomplete, or of another robot's size.
    """
    key = _unnorm_key(folder, unnorm_key)
    low, high = ("q01", "q99") if robot.normalization == "q99" else ("min", "max")
    _require_known_resizing(folder)
    try:
        action = folder.statistics[key]["action"]
        state = folder.statistics[key]["proprio"] if robot.state_dim else {low: [], high: []}
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
            center_crop=center_crop,
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
