from types import SimpleNamespace

import numpy as np
import pytest

from qvla_ros.evaluate.fidelity import ChunkPairs, Grippers, action_error


def pairs(difference: np.ndarray) -> ChunkPairs:
    target = np.random.default_rng(0).uniform(-1, 1, difference.shape)
    return ChunkPairs.whole(target + difference, target)


def test_equal_actions_have_no_error():
    error = action_error(pairs(np.zeros((3, 8, 7))), np.ones(8), Grippers((6,), (0.5,)))
    assert (error.mean_l1, error.rms, error.executed_l1, error.gripper_flips) == (0, 0, 0, 0)
    assert (error.steps, error.gripper_values) == (24, 24)


def test_the_measures_are_those_of_numpy():
    difference = np.random.default_rng(1).normal(0, 0.1, (5, 8, 7))
    error = action_error(pairs(difference))
    assert error.mean_l1 == pytest.approx(np.abs(difference).mean())
    assert error.rms == pytest.approx(np.sqrt((difference**2).mean()))
    np.testing.assert_allclose(error.l1_by_dimension, np.abs(difference).mean(axis=(0, 1)))
    np.testing.assert_allclose(error.l1_by_step, np.abs(difference).mean(axis=(0, 2)))
    assert error.executed_l1 == pytest.approx(error.mean_l1)


def test_steps_are_weighted_as_executed():
    difference = np.zeros((2, 4, 1))
    difference[:, 0], difference[:, 1], difference[:, 3] = 1.0, 3.0, 100.0
    error = action_error(pairs(difference), np.array([3, 1, 0, 0]))
    assert error.executed_l1 == pytest.approx((3 * 1 + 1 * 3) / 4)
    assert error.mean_l1 == pytest.approx(26)


def test_steps_that_are_not_valid_do_not_count_even_if_they_are_not_numbers():
    predicted = np.zeros((2, 3, 2))
    target = np.full((2, 3, 2), np.nan)
    valid = np.zeros((2, 3), bool)
    target[0, :2], valid[0, :2] = 0.5, True
    error = action_error(ChunkPairs(predicted, target, valid))
    assert (error.mean_l1, error.steps) == (0.5, 2)
    assert error.l1_by_step[:2] == (0.5, 0.5)
    assert np.isnan(error.l1_by_step[2])
    assert error.to_json()["l1_by_step"] == [0.5, 0.5, None]


def test_a_gripper_on_the_other_side_of_the_middle_is_a_flip_and_a_near_miss_is_none():
    predicted = np.array([[[0.0, 0.45], [0.0, 0.55], [0.0, 0.9]]])
    target = np.array([[[0.9, 0.55], [0.9, 0.95], [0.9, 0.1]]])
    error = action_error(ChunkPairs.whole(predicted, target), None, Grippers((1,), (0.5,)))
    assert (error.gripper_flips, error.gripper_values) == (2, 3)


class Scale:
    """Maps the range of the masked dimensions to -1..1 and leaves the others alone."""

    def __init__(self, names: tuple[str, ...], low: list, high: list, mask: list) -> None:
        robot = SimpleNamespace(action_names=names)
        self.settings = SimpleNamespace(robot=robot, action_low=low, action_high=high)
        self._mask = mask

    def normalized_actions(self, actions: np.ndarray) -> np.ndarray:
        low, high = np.array(self.settings.action_low), np.array(self.settings.action_high)
        return np.where(self._mask, 2 * (actions - low) / (high - low) - 1, actions)


def test_the_grippers_are_found_by_their_names_and_part_in_the_middle_of_their_range():
    names = ("dx", "left_gripper", "dy", "right_gripper")
    scale = Scale(names, [0, 0.2, 0, 0.0], [4, 1.0, 4, 1.0], [True, True, True, False])
    grippers = Grippers.of(scale)
    assert grippers.dimensions == (1, 3)
    assert grippers.middles == pytest.approx((0.0, 0.5))


def test_a_gripper_normalised_to_minus_one_to_one_flips_at_zero():
    # ALOHA: with a middle of 0.5 a closing hand at 0.3 would have counted as closed already.
    predicted, target = np.array([[[0.3], [-0.2]]]), np.array([[[0.9], [0.1]]])
    error = action_error(ChunkPairs.whole(predicted, target), None, Grippers((0,), (0.0,)))
    assert (error.gripper_flips, error.gripper_values) == (1, 2)


def test_joined_pairs_weigh_every_step_alike():
    first, second = pairs(np.full((1, 2, 1), 1.0)), pairs(np.full((3, 2, 1), 5.0))
    assert action_error(ChunkPairs.joined([first, second])).mean_l1 == pytest.approx(4.0)


def test_nothing_to_compare_is_refused():
    nothing = ChunkPairs(np.zeros((2, 3, 1)), np.zeros((2, 3, 1)), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="no step"):
        action_error(nothing)


def test_actions_that_are_not_finite_are_refused():
    difference = np.zeros((1, 2, 1))
    difference[0, 1, 0] = np.inf
    with pytest.raises(ValueError, match="finite"):
        action_error(pairs(difference))


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, -1], [0, 0, 0]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="step_weights"):
        action_error(pairs(np.zeros((1, 3, 1))), np.array(weights))


@pytest.mark.parametrize(
    ("predicted", "target", "valid"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 3), bool)),
        (np.zeros((2, 3, 1)), np.zeros((2, 3, 2)), np.ones((2, 3), bool)),
        (np.zeros((2, 3, 1)), np.zeros((2, 3, 1)), np.ones((2, 2), bool)),
        (np.zeros((2, 3, 1)), np.zeros((2, 3, 1)), np.ones((2, 3))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(predicted, target, valid):
    with pytest.raises(ValueError, match="must"):
        ChunkPairs(predicted, target, valid)
