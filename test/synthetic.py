"""Small models with random weights of each family, for tests."""

from qvla_ros.models.robot_constants import ROBOT_CONSTANTS, single_step
from qvla_ros.models.synthetic_model import SCALES, Family, SyntheticModel


def synthetic_model(family: Family, robot: str = "libero") -> SyntheticModel:
    """The smallest model of a family, in three shards."""
    towers, llama = SCALES["tiny"]
    constants = ROBOT_CONSTANTS[robot]
    if family == "openvla":
        constants = single_step(constants)
    return SyntheticModel(family, constants, towers, llama, shards=3)
