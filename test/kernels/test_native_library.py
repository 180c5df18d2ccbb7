"""Building the C++ kernel: once, atomically, and never required."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from qvla_ros.kernels import native_library as module

needs_build = pytest.mark.skipif(
    isinstance(module.native_library(), str), reason=str(module.native_library())
)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The function as a new process has it, with an empty cache in ``tmp_path``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("QVLA_NATIVE", raising=False)
    monkeypatch.setattr(module, "_processor_flags", lambda: module.PROCESSOR_FLAGS)
    return module.native_library.__wrapped__


@needs_build
def test_it_is_built_once_and_then_found(fresh, tmp_path, monkeypatch) -> None:
    assert isinstance(fresh(), ctypes.CDLL)
    (library,) = (tmp_path / "qvla_ros").iterdir()  # and no temporary file is left
    before = library.stat().st_mtime_ns
    assert isinstance(fresh(), ctypes.CDLL)
    assert library.stat().st_mtime_ns == before


@needs_build
def test_other_sources_are_built_anew(fresh, tmp_path, monkeypatch) -> None:
    fresh()
    changed = tmp_path / "sources"
    shutil.copytree(module.SOURCES, changed)
    (changed / "linear.cpp").write_text((changed / "linear.cpp").read_text() + "\n// changed\n")
    monkeypatch.setattr(module, "SOURCES", changed)
    fresh()
    assert len(list((tmp_path / "qvla_ros").iterdir())) == 2


def test_it_can_be_forbidden(fresh, monkeypatch) -> None:
    monkeypatch.setenv("QVLA_NATIVE", "0")
    assert fresh() == "QVLA_NATIVE=0 forbids the C++ kernel"


def test_another_processor_is_no_error(fresh, monkeypatch) -> None:
    monkeypatch.setattr(module, "_processor_flags", lambda: frozenset({"avx512f"}))
    assert fresh() == "the processor lacks avx512_bf16"


def test_a_missing_compiler_is_no_error(fresh, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert fresh() == "there is no C++ compiler"


def test_a_failing_compiler_is_no_error(fresh, tmp_path, monkeypatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(compiler))
    assert "could not build the C++ kernel (CalledProcessError)" in fresh()
    assert list((tmp_path / "qvla_ros").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(fresh, tmp_path, monkeypatch) -> None:
    (tmp_path / "qvla_ros").write_text("a file stands where the folder should be")
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    assert "could not be built or loaded" in fresh()


def test_a_damaged_library_is_no_error(fresh, tmp_path, monkeypatch) -> None:
    def damaged(*_: object, **__: object) -> Path:
        path = tmp_path / "native.so"
        path.write_bytes(b"no library")
        return path

    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    monkeypatch.setattr(module, "_built", damaged)
    assert "could not be built or loaded" in fresh()


def test_missing_sources_are_no_error(fresh, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    monkeypatch.setattr(module, "SOURCES", tmp_path / "nowhere")
    assert "could not be built or loaded" in fresh()


def test_a_compiler_that_hangs_is_no_error(fresh, monkeypatch) -> None:
    def hang(*_: object, **__: object) -> object:
        raise subprocess.TimeoutExpired("c++", 1)

    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    monkeypatch.setattr(subprocess, "run", hang)
    assert "(TimeoutExpired)" in fresh()
