"""The demo: the policy, a dry adapter, and the demo's own recordings, stamped anew.

Run from the source folder, after ``make demo`` has made the checkpoint:
``ros2 launch launch/demo.launch.py``.
"""

import sys
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

ROOT = Path(__file__).resolve().parent.parent
BAGS = sorted((ROOT / "demo" / "bags").glob("heldout_*"))


def generate_launch_description() -> LaunchDescription:
    """Policy, adapter and player; all end with the recordings."""
    checkpoint = ROOT / "demo_output" / "policy.qvla.safetensors"
    play = [sys.executable, "-m", "demo.play_bag", *map(str, BAGS)]
    play += ["--repeat", LaunchConfiguration("repeat"), "--log", LaunchConfiguration("log")]
    return LaunchDescription(
        [
            DeclareLaunchArgument("checkpoint", default_value=str(checkpoint)),
            DeclareLaunchArgument("repeat", default_value="3"),
            DeclareLaunchArgument("log", default_value="/dev/null"),
            _included("policy.launch.py", {"checkpoint": LaunchConfiguration("checkpoint")}),
            _included("adapter.launch.py", {}),
            ExecuteProcess(cmd=play, cwd=str(ROOT), output="screen", on_exit=Shutdown()),
        ]
    )


def _included(name: str, arguments: dict) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())
