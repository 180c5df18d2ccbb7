"""``colcon build`` and ``colcon test`` of this package in a folder of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping
from pathlib import Path

from demo.node_evidence.processes import ROOT

SOURCES = (
    *("CMakeLists.txt", "package.xml", "pyproject.toml", "setup.py"),
    *("config", "demo", "docs", "launch", "msg", "qvla_ros", "scripts", "test"),
)
TESTS = (
    *("test_adapter_node", "test_configure", "test_conversions", "test_operator"),
    *("test_policy_node", "test_timing"),
)
"""Of those that ``colcon test`` runs; the fault table's part of the evidence runs all of them."""


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
        only = ["--ctest-args", "-R", f"^({'|'.join(TESTS)})$"]
        _colcon(log, ["test", *paths, *places, *only], folder)
        return counted(folder / "build", TESTS)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def counted(build: Path, wanted: Collection[str]) -> dict[str, object]:
    """Tests and failures in the result files under a build folder.

    Raises:
        ValueError: One of the ``wanted`` left no results.
    """
    tests = failed = 0
    results = sorted(build.glob("*/test_results/**/*.xml"))
    missing = set(wanted) - {path.name.partition(".")[0] for path in results}
    if missing:
        raise ValueError(f"colcon test left no results of {', '.join(sorted(missing))}")
    wrong = []
    for path in results:
        report = ElementTree.parse(path)
        for suite in report.iter("testsuite"):
            tests += int(suite.get("tests", "0"))
            failed += int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        for case in report.iter("testcase"):
            told = case.find("failure") if case.find("error") is None else case.find("error")
            if told is not None:
                wrong.append(f"{case.get('name')}: {told.get('message', '')}"[:300])
    return {"colcon_tests": tests, "colcon_tests_failed": failed, "colcon_failures": wrong}


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
