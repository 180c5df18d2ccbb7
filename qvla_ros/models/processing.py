"""The only pre- and post-processing: observation to network inputs, network answer to actions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from qvla_ros.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from qvla_ros.models.image_processing import central_crop, normalize, resize_lanczos
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.robot_constants import RobotConstants
from qvla_ros.models.typed_json import from_json
from qvla_ros.observation import Observation

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
_TOWERS = 2
_EPSILON = 1e-8  # of the released normalisation, so that a constant dimension does not divide by 0


@dataclass(frozen=True, slots=True)
class ProcessingSettings:
    """All numbers that processing needs; they travel inside the packed checkpoint.

    Attributes:
        robot: Names, sizes and rates of the robot's observations and actions.
        unnorm_key: Name of the data set whose statistics are used.
        action_low, action_high: Robot units that -1 and 1 stand for, a number a dimension.
        action_mask: Dimensions that are un-normalised (a gripper is often left alone).
        state_low, state_high: Robot units of the proprioception range.
        image_size: Side of the network's input, pixels.
        means, stds: Normalisation of each tower, three channels each, range 0..1.
        center_crop: Whether the network was trained on random crops of 0.9 area.
    """

    robot: RobotConstants
    unnorm_key: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_mask: tuple[bool, ...]
    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    image_size: int
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]
    center_crop: bool

    def __post_init__(self) -> None:
        robot = self.robot
        if min(robot.horizon, robot.period_ns, self.image_size) < 1 or not robot.image_names:
            raise ValueError("horizon, period, image size and number of cameras must be positive")
        for name, count in (
            ("action_low", robot.action_dim),
            ("action_high", robot.action_dim),
            ("action_mask", robot.action_dim),
            ("state_low", robot.state_dim),
            ("state_high", robot.state_dim),
            ("means", _TOWERS),
            ("stds", _TOWERS),
        ):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries; robot {robot.name!r} with "
                    f"two vision towers needs {count}"
                )
        channels = [*self.means, *self.stds]
        if any(len(one) != 3 for one in channels) or min(map(min, self.stds)) <= 0:
            raise ValueError("means and stds must be three each, and stds positive")
        ranges = (self.action_low, self.action_high), (self.state_low, self.state_high)
        numbers = np.concatenate([*map(np.ravel, ranges), np.ravel(channels)])
        if not np.isfinite(numbers).all():
            raise ValueError("ranges, means and stds must be finite")
        if any(np.greater(low, high).any() for low, high in ranges):
            raise ValueError("the lower end of a range is above its upper end")

    def to_json(self) -> dict[str, object]:
        """A JSON object that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProcessingSettings":
        """Rebuild from JSON.

        Raises:
            CheckpointError: A key is missing, unknown, of another type or of a wrong length.
        """
        try:
            return from_json(cls, value, "processing")
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint's processing settings are bad: {error}"
            ) from error


def _tokenizer(text: str) -> Tokenizer:
    """Parse the text of a ``tokenizer.json``.

    Raises:
        UnsupportedModelError: It is not one.
    """
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:
        # The library raises the bare class Exception, and nothing narrower, for a bad file.
        if type(error) is not Exception:
            raise
        raise UnsupportedModelError(f"tokenizer.json cannot be parsed: {error}") from error


class Processing:
    """Turn observations into network inputs and network answers into robot actions."""

    def __init__(self, settings: ProcessingSettings, tokenizer_json: str) -> None:
        self.settings = settings
        self.tokenizer_json = tokenizer_json
        self._tokenizer = _tokenizer(tokenizer_json)
        self._begin = self._token("<s>")
        self.end_token_id = self._token("</s>")
        self._space = self._token("▁")
        self._means = np.asarray(settings.means, dtype=np.float32)
        self._stds = np.asarray(settings.stds, dtype=np.float32)
        self._state_low = np.asarray(settings.state_low, dtype=np.float64)
        self._state_high = np.asarray(settings.state_high, dtype=np.float64)
        self._action_low = np.asarray(settings.action_low, dtype=np.float64)
        self._action_high = np.asarray(settings.action_high, dtype=np.float64)
        self._action_mask = np.asarray(settings.action_mask, dtype=bool)

    def _token(self, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise UnsupportedModelError(f"tokenizer.json has no token {text!r}")
        return number

    def prepare(self, observation: Observation) -> ModelInputs:
        """Process one observation into a batch of one.

        Raises:
            ConfigurationError: A camera is missing or the state has another size.
        """
        missing = [n for n in self.settings.robot.image_names if n not in observation.images]
        if missing:
            raise ConfigurationError(f"the observation lacks the camera(s) {', '.join(missing)}")
        pixels = torch.cat(
            [self.image_tensor(observation.images[n]) for n in self.settings.robot.image_names]
        )
        return ModelInputs(
            pixels=pixels[None],
            token_ids=torch.tensor([self.token_ids(observation.instruction)]),
            end_token_id=self.end_token_id,
            state=torch.from_numpy(self.normalized_state(observation.state))[None],
        )

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Scale ``uint8 [h, w, 3]`` to the network's size, before any crop."""
        return resize_lanczos(image, self.settings.image_size)

    def image_tensor(self, image: np.ndarray) -> torch.Tensor:
        """Turn ``uint8 [h, w, 3]`` into float32 ``[6, side, side]``."""
        image = self.resize(image)
        if self.settings.center_crop:
            image = central_crop(image)
        return normalize(image, self._means, self._stds)

    def token_ids(self, instruction: str) -> list[int]:
        """BOS, then the prompt, closed by the lone-space token that training always had."""
        prompt = PROMPT.format(instruction=instruction.lower())
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        ids = ids if ids and ids[0] == self._begin else [self._begin, *ids]
        return ids if ids[-1] == self._space else [*ids, self._space]

    def normalized_state(self, state: np.ndarray) -> np.ndarray:
        """Map robot units to float32 ``[state_dim]`` in -1..1, clipped."""
        if state.shape != self._state_low.shape:
            raise ConfigurationError(
                f"the state has {state.size} numbers, the model wants {self._state_low.size} "
                f"({', '.join(self.settings.robot.state_names)})"
            )
        span = self._state_high - self._state_low + _EPSILON
        return np.clip(2 * (state - self._state_low) / span - 1, -1, 1).astype(np.float32)

    def robot_actions(self, normalized: np.ndarray) -> np.ndarray:
        """Map normalised ``[..., action_dim]`` to robot units, float32, not clipped."""
        span = self._action_high - self._action_low + _EPSILON
        scaled = 0.5 * (normalized + 1) * span + self._action_low
        return np.where(self._action_mask, scaled, normalized).astype(np.float32)

    def normalized_actions(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of ``robot_actions``: robot units to the network's space, float32."""
        span = self._action_high - self._action_low + _EPSILON
        scaled = 2 * (actions - self._action_low) / span - 1
        return np.where(self._action_mask, scaled, actions).astype(np.float32)


def stack_inputs(batch: list[ModelInputs]) -> ModelInputs:
    """Join batches whose prompts have the same length.

    Raises:
        ValueError: Prompts differ in length (they cannot share a batch without padding).
    """
    if len({inputs.token_ids.shape[1] for inputs in batch}) != 1:
        raise ValueError("only prompts of one length can be stacked")
    return ModelInputs(
        pixels=torch.cat([inputs.pixels for inputs in batch]),
        token_ids=torch.cat([inputs.token_ids for inputs in batch]),
        end_token_id=batch[0].end_token_id,
        state=torch.cat([inputs.state for inputs in batch]),
        action_ids=_stacked_answers(batch),
    )


def split_inputs(batch: ModelInputs) -> list[ModelInputs]:
    """The inverse of ``stack_inputs``: batches of one."""
    answers = batch.action_ids
    return [
        ModelInputs(
            pixels=batch.pixels[index : index + 1],
            token_ids=batch.token_ids[index : index + 1],
            end_token_id=batch.end_token_id,
            state=batch.state[index : index + 1],
            action_ids=None if answers is None else answers[index : index + 1],
        )
        for index in range(len(batch.pixels))
    ]


def _stacked_answers(batch: list[ModelInputs]) -> torch.Tensor | None:
    answers = [inputs.action_ids for inputs in batch if inputs.action_ids is not None]
    if answers and len(answers) != len(batch):
        raise ValueError("only some of the batch have an answer")
    return torch.cat(answers) if answers else None
