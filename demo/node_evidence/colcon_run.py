"""``colcon build`` and ``colcon test`` of this package in a folder of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from demo.node_evidence.processes import ROOT

SOURCES = (
    *("CMakeLists.txt", "package.xml", "pyproject.toml", "setup.py"),
    *("config", "launch", "msg", "qvla_ros", "scripts", "test"),
)


def build_and_test() -> dict[str, object]:
    """Build, test and count.

    Raises:
        subprocess.CalledProcessError: The build failed, or no test could be run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        for part in SOURCES:
            _copy(ROOT / part, source / part)
        places = ["--build-base", str(folder / "build"), "--install-base", str(folder / "install")]
        python = f"-DPython3_EXECUTABLE={sys.executable}"
        log = str(folder / "log")
        paths = ["--paths", str(source)]
        build = ["build", *paths, *places, "--cmake-args", python, "-DBUILD_TESTING=ON"]
        _colcon(log, build, folder)
        # Failed tests are counted below, from the files that each of them leaves.
        _colcon(log, ["test", *paths, *places], folder)
        return counted(folder / "build")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def counted(build: Path) -> dict[str, object]:
    """Tests and failures in the result files under a build folder."""
    tests = failed = 0
    for path in sorted(build.glob("*/test_results/**/*.xml")):
        for suite in ElementTree.parse(path).iter("testsuite"):
            tests += int(suite.get("tests", "0"))
            failed += int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    if tests == 0:
        raise ValueError("colcon test left no results")
    return {"colcon_tests": tests, "colcon_tests_failed": failed}


def _colcon(log: str, words: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "colcon", "--log-base", log, *words]
    subprocess.run(command, cwd=folder, env=_environment(os.environ), check=True)


def _environment(present: Mapping[str, str]) -> dict[str, str]:
    """Without this project's own package, lest the sources are tested instead of what is built."""
    kept = dict(present)
    for name in ("PYTHONPATH", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "LD_LIBRARY_PATH"):
        folders = [one for one in kept.get(name, "").split(os.pathsep) if one]
        foreign = [one for one in folders if not _is_ours(Path(one))]
        kept[name] = os.pathsep.join(foreign)
    kept["CMAKE_PREFIX_PATH"] = kept["CMAKE_PREFIX_PATH"] or kept["AMENT_PREFIX_PATH"]
    return kept


def _is_ours(folder: Path) -> bool:
    return folder == ROOT or ROOT / ".cache" in folder.parents
