"""A recorded robot before a policy: ``ros2 bag play`` with its clock, the policy, a dry adapter.

The bag's stamps are old; the nodes live in its time (``use_sim_time``), so nothing is stale. It is
played as soon as the policy is active.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config" / "libero.yaml"
NOT_FOR_THE_ROBOT = ("/robot/action", "/robot/command")


def generate_launch_description() -> LaunchDescription:
    """Player, policy and adapter."""
    common = {"params_file": LaunchConfiguration("params_file"), "use_sim_time": "true"}
    policy = {**common, "checkpoint": LaunchConfiguration("checkpoint")}
    # The recorded actions and commands reach nobody. (Humble cannot leave topics out.)
    play = ["ros2", "bag", "play", LaunchConfiguration("bag"), "--clock", "100", "--delay", "2"]
    play += ["--remap", *(f"{topic}:=/recorded{topic}" for topic in NOT_FOR_THE_ROBOT)]
    player = OnStateTransition(
        goal_state="active",
        entities=[ExecuteProcess(cmd=play, output="screen")],
        handle_once=True,  # and not again after a pause in the lifecycle
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("checkpoint", description="packed checkpoint"),
            DeclareLaunchArgument("bag", description="rosbag2 folder"),
            DeclareLaunchArgument("params_file", default_value=str(CONFIG)),
            RegisterEventHandler(player),
            _included("policy.launch.py", policy),
            _included("adapter.launch.py", common),
        ]
    )


def _included(name: str, arguments: dict) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(HERE / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())
