"""The whole deployed stack in the loop: policy, adapter, and a simulated robot with its clock.

Ends by itself after the episodes; the exit status is 0 only if all of them are recorded.
"""

import shutil
import sys
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config" / "libero_simulation.yaml"
SIMULATOR = ROOT / ".venv-libero" / "bin" / "python"
# launch leaves its nodes behind when it dies of a SIGTERM.
PREFIX = "setpriv --pdeathsig TERM --" if shutil.which("setpriv") else None
ARGUMENTS = {
    "checkpoint": (None, str, "packed checkpoint, *.qvla.safetensors"),
    "out": (None, str, "JSON lines of the episodes; an interrupted run goes on there"),
    "suite": ("libero_spatial", str, "LIBERO suite"),
    "tasks": ("[0, 2]", None, "indices of its tasks"),
    "episodes": ("5", int, "official initial states 0 to N-1 of each task"),
    "max_steps": ("220", int, "control steps after which an episode has failed"),
    "camera_every": ("8", int, "control steps from one image of each camera to the next"),
    "real_time_factor": ("0.0", float, "simulated seconds in a second; 0: wait for commands"),
    "simulator_python": (
        str(SIMULATOR) if SIMULATOR.exists() else sys.executable,
        str,
        "Python in whose environment LIBERO is installed",
    ),
    "params_file": (str(CONFIG), str, "YAML file of the nodes' parameters"),
}


def generate_launch_description() -> LaunchDescription:
    """Policy, adapter and simulation."""
    common = {"params_file": LaunchConfiguration("params_file"), "use_sim_time": "true"}
    policy = {**common, "checkpoint": LaunchConfiguration("checkpoint")}
    own = [name for name in ARGUMENTS if name not in ("checkpoint", "params_file")]
    simulation = Node(
        package="qvla_ros",
        executable="sim_node",
        name="simulation",
        parameters=[
            LaunchConfiguration("params_file"),
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=ARGUMENTS[name][1])
                for name in own
            },
        ],
        output="both",
        prefix=PREFIX,
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, _, text) in ARGUMENTS.items()
    ]
    nodes = [
        _included("policy.launch.py", policy),
        _included("adapter.launch.py", {**common, "dry_run": "false"}),
    ]
    watch = RegisterEventHandler(OnProcessExit(on_exit=_end))
    return LaunchDescription([*arguments, watch, *nodes, simulation])


def _end(event: ProcessExited, context: LaunchContext) -> list[EmitEvent]:
    """The first process to end takes the others with it."""
    if context.is_shutdown:
        return []
    simulation = any(word.endswith("/sim_node") for word in event.cmd)
    if event.returncode or not simulation:
        # What launch makes of an error: it shuts the others down, and its exit status is 1.
        raise RuntimeError(f"{event.cmd} has ended with status {event.returncode}")
    return [EmitEvent(event=Shutdown(reason="all episodes are recorded"))]


def _included(name: str, arguments: dict) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())
