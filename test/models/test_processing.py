"""Pre- and post-processing against references written out in NumPy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.errors import CheckpointError, ConfigurationError
from qvla_ros.models.image_processing import central_crop, normalize, resize_lanczos
from qvla_ros.models.processing import Processing, ProcessingSettings
from qvla_ros.models.registry import load_model


@pytest.fixture(scope="module")
def processing(tmp_path_factory):
    return load_model(tiny_folder(tmp_path_factory.mktemp("model"))).processing


def lanczos_weights(source: int, target: int) -> np.ndarray:
    """Antialiased Lanczos-3 as TensorFlow defines it: the kernel widens with the reduction."""
    scale = max(source / target, 1.0)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    distance = (np.arange(source)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [128, 256, 97])
def test_resizing_is_within_two_grey_levels_of_lanczos3(size):
    # A photograph's spectrum, not white noise: Pillow rounds between its two passes.
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0:size] / size
    waves = sum(
        np.sin(2 * np.pi * (rng.integers(1, 9) * rows + rng.integers(1, 9) * columns + shift))
        for shift in rng.uniform(size=12)
    )
    image = (127 + 9 * waves[..., None] + 5 * np.arange(3)).clip(0, 255).astype(np.uint8)
    weights = lanczos_weights(size, 64)
    expected = np.einsum("ys,stc,xt->yxc", weights, image.astype(float), weights).clip(0, 255)
    assert np.abs(resize_lanczos(image, 64).astype(float) - expected).max() <= 2


def test_the_crop_is_within_one_grey_level_of_a_corner_aligned_bilinear_reference():
    rng = np.random.default_rng(1)
    side = 32
    image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    edge = math.sqrt(0.9)
    positions = ((1 - edge) / 2 + np.linspace(0, 1, side) * edge) * (side - 1)
    low = np.minimum(positions.astype(int), side - 2)
    share = positions - low
    weights = np.zeros((side, side))
    weights[np.arange(side), low] = 1 - share
    weights[np.arange(side), low + 1] = share
    expected = np.einsum("ys,stc,xt->yxc", weights, image.astype(float), weights)
    assert np.abs(central_crop(image).astype(float) - expected).max() <= 1


def test_each_tower_gets_its_own_normalisation():
    image = np.full((4, 4, 3), 255, np.uint8)
    means = np.array([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]], np.float32)
    stds = np.array([[0.25, 0.5, 1.0], [1.0, 1.0, 2.0]], np.float32)
    channels = normalize(image, means, stds)[:, 0, 0].tolist()
    assert channels == [2.0, 1.0, 0.5, 1.0, 1.0, 0.5]


def test_the_prompt_is_lower_case_and_ends_with_the_lone_space(processing):
    ids = processing.token_ids("Pick up the BLACK bowl")
    assert ids == processing.token_ids("pick up the black bowl")
    assert ids[0] == processing._tokenizer.token_to_id("<s>")
    assert ids[-1] == processing._tokenizer.token_to_id("▁")
    assert ids.count(ids[0]) == 1


def test_states_are_scaled_to_the_percentiles_and_clipped(processing):
    low = np.asarray(processing.settings.state_low, np.float32)
    high = np.asarray(processing.settings.state_high, np.float32)
    np.testing.assert_allclose(processing.normalized_state(low), -1, atol=1e-6)
    np.testing.assert_allclose(processing.normalized_state((low + high) / 2), 0, atol=1e-6)
    np.testing.assert_array_equal(processing.normalized_state(high + 100), 1)


def test_actions_come_back_from_robot_units_and_are_not_clipped(processing):
    normalized = np.linspace(-1.5, 1.5, 7 * 8, dtype=np.float32).reshape(8, 7)
    robot = processing.robot_actions(normalized)
    np.testing.assert_allclose(processing.normalized_actions(robot), normalized, atol=1e-5)
    assert robot[-1, 0] > processing.settings.action_high[0]


def test_a_masked_dimension_is_left_alone(processing):
    normalized = np.full((1, 7), 0.3, np.float32)
    robot = processing.robot_actions(normalized)
    assert robot[0, -1] == np.float32(0.3)
    assert robot[0, 0] != np.float32(0.3)


def test_a_missing_camera_and_a_wrong_state_are_named(processing):
    observation = tiny_observation()
    blind = replace(observation, images={"primary": observation.images["primary"]})
    with pytest.raises(ConfigurationError, match="wrist"):
        processing.prepare(blind)
    with pytest.raises(ConfigurationError, match="3 numbers"):
        processing.prepare(replace(observation, state=np.zeros(3, np.float32)))


def test_settings_survive_json(processing):
    settings = processing.settings
    assert ProcessingSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_settings_with_an_unknown_key_are_refused(processing):
    with pytest.raises(CheckpointError, match="surprise"):
        ProcessingSettings.from_json({**processing.settings.to_json(), "surprise": 1})


SPOILT = {
    "a word for a number": (lambda v: v.update(image_size="28"), "processing.image_size"),
    "a flag for a number": (lambda v: v.update(image_size=True), "processing.image_size"),
    "a number for a flag": (lambda v: v.update(center_crop=1), "processing.center_crop"),
    "a word among numbers": (lambda v: v["action_low"].append("x"), r"action_low\[7\]"),
    "a range too short": (lambda v: v["action_low"].pop(), "action_low has 6 entries"),
    "a missing field": (lambda v: v.pop("means"), "lacks the field 'means'"),
    "no robot": (lambda v: v.update(robot=None), "processing.robot must be an object"),
    "a robot of another kind": (lambda v: v["robot"].update(normalization="z"), "q99, min_max"),
    "no horizon": (lambda v: v["robot"].update(horizon=0), "must be positive"),
    "stds of zero": (lambda v: v.update(stds=[[0, 1, 1]] * 2), "stds positive"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_spoilt_settings_are_refused_with_the_field(processing, fault):
    spoil, message = SPOILT[fault]
    value = json.loads(json.dumps(processing.settings.to_json()))
    spoil(value)
    with pytest.raises(CheckpointError, match=message):
        ProcessingSettings.from_json(value)


def test_processing_can_be_rebuilt_from_its_text(processing):
    again = Processing(processing.settings, processing.tokenizer_json)
    first, second = (p.prepare(tiny_observation()) for p in (processing, again))
    assert first.token_ids.equal(second.token_ids)
    assert first.pixels.equal(second.pixels)
