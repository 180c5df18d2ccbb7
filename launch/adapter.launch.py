"""Starts the adapter beside a policy node; a dry run unless told otherwise."""

import shutil
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

CONFIG = Path(__file__).resolve().parent.parent / "config" / "libero.yaml"
# launch leaves its nodes behind when it dies of a SIGTERM; a policy must not go on without anybody.
PREFIX = "setpriv --pdeathsig TERM --" if shutil.which("setpriv") else None
ARGUMENTS = {
    "params_file": (str(CONFIG), "YAML file of the node's parameters"),
    "namespace": ("", "namespace of the node and its topics"),
    "use_sim_time": ("false", "follow /clock instead of the system's clock"),
    "dry_run": ("true", "false: command the controllers"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def generate_launch_description() -> LaunchDescription:
    """The adapter node and its arguments."""
    switches = {
        name: ParameterValue(LaunchConfiguration(name), value_type=bool)
        for name in ("dry_run", "use_sim_time")
    }
    node = Node(
        package="qvla_ros",
        executable="adapter_node",
        name="adapter",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), switches],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="both",
        prefix=PREFIX,
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, node])
