"""The optional C++ kernel for x86: built with the system's compiler on first use, then cached."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
"""The C++ files."""

PROCESSOR_FLAGS = frozenset(
    {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}
)
"""What the processor must be able to do, as ``/proc/cpuinfo`` names it."""

_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-exceptions",
    "-fno-rtti",
    "-w",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512vnni",
    "-mavx512bf16",
]
_BUILD_SECONDS = 120


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | str:
    """The loaded library, or the reason why there is none, in a few words.

    The first call of all compiles it, which takes seconds, into the user's cache folder
    (``$XDG_CACHE_HOME/qvla_ros``); later ones find it there. ``QVLA_NATIVE=0`` forbids it.
    """
    if os.environ.get("QVLA_NATIVE") == "0":
        return "QVLA_NATIVE=0 forbids the C++ kernel"
    missing = sorted(PROCESSOR_FLAGS - _processor_flags())
    if missing:
        return f"the processor lacks {missing[0]}"
    compiler = system_compiler()
    if compiler is None:
        return "there is no C++ compiler"
    try:
        return _load(_built(compiler))
    except subprocess.SubprocessError as error:
        return f"{compiler} could not build the C++ kernel ({type(error).__name__})"
    except OSError as error:
        return f"the C++ kernel could not be built or loaded: {error}"


def system_compiler() -> str | None:
    """Path of the C++ compiler that is used, or ``None``."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qvla_ros"


def _built(compiler: str) -> Path:
    """The library's file, named for all that it is made of; made if it is not there yet."""
    sources = sorted(SOURCES.iterdir())
    content = b"".join(path.name.encode() + path.read_bytes() for path in sources)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(content + version + " ".join(_OPTIONS).encode()).hexdigest()[:16]
    library = _cache_folder() / f"native-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two processes may build at once: each its own file, and the last one stays.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [compiler, *_OPTIONS, "-o", str(made)]
            command += [str(path) for path in sources if path.suffix == ".cpp"]
            subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_SECONDS)
            os.replace(made, library)
    return library


def _load(path: Path) -> ctypes.CDLL:
    """With OpenMP's threads taken from PyTorch, whose symbols are global: not a second pool."""
    library = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.qvla_scratch_bytes.argtypes = [pointer, count, count]
    library.qvla_scratch_bytes.restype = ctypes.c_int64
    library.qvla_linear.argtypes = [pointer, pointer, pointer, count, pointer, count]
    library.qvla_linear.restype = None
    return library
