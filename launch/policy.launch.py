"""Starts the policy node; with ``autostart`` it is configured and activated at once."""

import shutil
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

CONFIG = Path(__file__).resolve().parent.parent / "config" / "libero.yaml"
# launch leaves its nodes behind when it dies of a SIGTERM; a policy must not go on without anybody.
PREFIX = "setpriv --pdeathsig TERM --" if shutil.which("setpriv") else None


def generate_launch_description() -> LaunchDescription:
    """The node, its arguments, and the events that start it."""
    checkpoint = LaunchConfiguration("checkpoint")
    use_sim_time = LaunchConfiguration("use_sim_time")
    node = LifecycleNode(
        package="qvla_ros",
        executable="policy_node",
        name="policy",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "checkpoint": ParameterValue(checkpoint, value_type=str),
                "use_sim_time": ParameterValue(use_sim_time, value_type=bool),
            },
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="both",
        prefix=PREFIX,
    )
    return LaunchDescription([*_arguments(), *_autostart(node), node])


def _arguments() -> list[DeclareLaunchArgument]:
    table = {
        "checkpoint": (None, "packed checkpoint, *.qvla.safetensors"),
        "params_file": (str(CONFIG), "YAML file of the node's parameters"),
        "namespace": ("", "namespace of the node and its topics"),
        "use_sim_time": ("false", "follow /clock instead of the system's clock"),
        "log_level": ("info", "debug, info, warn, error or fatal"),
        "autostart": ("true", "configure and activate the node"),
    }
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in table.items()
    ]


def _autostart(node: LifecycleNode) -> list[RegisterEventHandler]:
    def change(transition: int) -> EmitEvent:
        event = ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        return EmitEvent(event=event)

    wanted = IfCondition(LaunchConfiguration("autostart"))
    configure = OnProcessStart(
        target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)]
    )
    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return [
        RegisterEventHandler(configure, condition=wanted),
        RegisterEventHandler(activate, condition=wanted),
    ]
