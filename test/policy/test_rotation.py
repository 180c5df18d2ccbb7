"""Rotations as three numbers, against each other and known ones."""

import numpy as np
import pytest

from qvla_ros.policy.rotation import quaternion_of_euler, quaternion_of_vector, rotation_vector

HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("quaternion", "vector"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([0, 0, HALF, HALF], [0, 0, np.pi / 2]),
        ([0, 0, -HALF, -HALF], [0, 0, np.pi / 2]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([0, 2e-12, 0, 1], [0, 4e-12, 0]),
        ([0, 3, 0, 3], [0, np.pi / 2, 0]),
    ],
)
def test_a_quaternion_becomes_axis_times_angle(quaternion, vector):
    np.testing.assert_allclose(rotation_vector(quaternion), vector, atol=1e-15)


def test_a_vector_survives_both_ways():
    for vector in np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3)):
        np.testing.assert_allclose(rotation_vector(quaternion_of_vector(vector)), vector)


def test_euler_angles_turn_about_fixed_axes():
    np.testing.assert_allclose(quaternion_of_euler([0, 0, np.pi / 2]), [0, 0, HALF, HALF])
    # First about x, then about the old y: the y axis ends up along z turned by y, i.e. along x.
    np.testing.assert_allclose(
        quaternion_of_euler([np.pi / 2, np.pi / 2, 0]), [0.5, 0.5, -0.5, 0.5]
    )


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1]])
def test_what_is_no_rotation_is_refused(quaternion):
    with pytest.raises(ValueError, match="is no rotation"):
        rotation_vector(quaternion)
