"""Where tests find Triton: in the environment, or beside it, where scripts/setup.sh puts it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.prefix) / "opt" / "triton"


def triton_environment(beside_first: bool = False) -> dict[str, str]:
    """Variables of a process that can import Triton and the tests; without Triton: skipped.

    Beside, because wherever Triton can be imported transformers imports it too: in every test.
    torch for CUDA brings a version of its own into the environment, which is the one that serves.

    Args:
        beside_first: Take the version that the project compiles its gates with nevertheless.
    """
    places = [str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]
    is_beside, is_inside = (FOLDER / "triton").is_dir(), find_spec("triton") is not None
    if not (is_beside or is_inside):
        pytest.skip("Triton is not installed")
    if is_beside and (beside_first or not is_inside):
        places.append(str(FOLDER))
    path = os.pathsep.join(filter(None, places))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
