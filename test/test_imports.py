"""The layout's promises that no linter sees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ROS_PACKAGES = [
    "builtin_interfaces",
    "diagnostic_msgs",
    "geometry_msgs",
    "lifecycle_msgs",
    "nav_msgs",
    "qvla_ros.msg",
    "rcl_interfaces",
    "rclpy",
    "rosgraph_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "tf2_ros",
    "trajectory_msgs",
]
NEED_TRITON = ("triton_kernels", "triton_fused_kernels")  # which is optional
SOURCES = [
    path
    for folder in ("qvla_ros", "scripts", "test", "demo", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def modules_without_ros() -> list[str]:
    names = []
    for path in sorted((ROOT / "qvla_ros").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "node" not in parts and parts[-1] not in NEED_TRITON:
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_everything_outside_the_node_imports_without_ros() -> None:
    names = modules_without_ros()
    assert "qvla_ros.policy.inference_loop" in names
    program = (
        "import importlib, sys\n"
        f"for name in {ROS_PACKAGES!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_poison_of_the_test_above_is_deadly() -> None:
    program = (
        "import sys\n"
        f"for name in {ROS_PACKAGES!r}: sys.modules[name] = None\n"
        "import qvla_ros.node.policy_node\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0


def test_no_source_file_is_longer_than_400_lines() -> None:
    files = [*SOURCES, *ROOT.glob("*.py"), *(ROOT / "scripts").iterdir(), ROOT / "CMakeLists.txt"]
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if path.is_file() and (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_a_config_file_holds_ros_parameters(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert all("ros__parameters" in node for node in content.values())


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda p: p.name)
def test_a_launch_file_can_be_parsed_and_describes_a_launch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in functions
