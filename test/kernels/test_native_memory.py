"""No product of the C++ kernel touches memory beside its buffers, under AddressSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvla_ros.kernels.native_library import native_library, system_compiler

HERE = Path(__file__).parent
TOO_SHORT = """
import address_sanitizer
from qvla_ros.kernels import cpu_native
take = cpu_native.take
cpu_native.take = lambda name, shape, dtype: take(name, (2048,), dtype)
"""


def sanitizer() -> str:
    """The library that has to be preloaded, or an empty text."""
    compiler = system_compiler()
    if isinstance(native_library(), str) or compiler is None:
        return ""
    words = [compiler, "-print-file-name=libasan.so"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return told if Path(told).is_absolute() else ""


pytestmark = pytest.mark.skipif(not sanitizer(), reason="no C++ kernel, or no AddressSanitizer")


def products(plugin: str, folder: Path, which: str) -> subprocess.CompletedProcess:
    """Run tests of the kernel in a process with the sanitizer, and with a plugin."""
    places = (str(folder), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(places),
    }
    words = ["-m", "pytest", "-qs", "-p", plugin, str(HERE / "test_cpu_native.py"), "-k", which]
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_products_stay_within_their_buffers(tmp_path) -> None:
    which = "multiplied or threads or neighbours or contiguous or bias"
    done = products("address_sanitizer", tmp_path, which)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_a_product_beside_its_buffer_would_be_seen(tmp_path) -> None:
    (tmp_path / "too_short.py").write_text(TOO_SHORT)
    done = products("too_short", tmp_path, "multiplied and 2-512")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
