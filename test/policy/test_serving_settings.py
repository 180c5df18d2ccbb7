"""The parameters that a replay shares with the node are the node's, by name and by default."""

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="the node needs ROS 2")

import yaml

from qvla_ros.cli.robot_arguments import _of_file
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session_settings import serving_parameters
from qvla_ros.policy.serving_settings import ServingParameters

CONFIG = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))


def test_each_is_a_parameter_of_the_node_with_the_same_default():
    assert serving_parameters(NodeParameters()) == ServingParameters()


@pytest.mark.parametrize(
    "path", [one for one in CONFIG if "policy:" in one.read_text()], ids=lambda one: one.stem
)
def test_a_configuration_of_the_node_means_the_same_to_a_replay(path):
    sections = yaml.safe_load(path.read_text())
    given = next(one["ros__parameters"] for key, one in sections.items() if "policy" in key)
    node = NodeParameters(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )
    replayed = ServingParameters(**_of_file(path, ServingParameters()))
    assert replayed == serving_parameters(node)
