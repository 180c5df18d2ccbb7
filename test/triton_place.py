"""Where tests find Triton: in the environment, or beside it, where scripts/setup.sh puts it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.prefix) / "opt" / "triton"


def triton_environment() -> dict[str, str]:
    """Variables of a process that can import Triton and the tests; without Triton: skipped.

    Beside, because wherever Triton can be imported transformers imports it too: in every test.
    """
    places = [str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]
    if find_spec("triton") is None:
        if not (FOLDER / "triton").is_dir():
            pytest.skip("Triton is not installed")
        places.append(str(FOLDER))
    path = os.pathsep.join(filter(None, places))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
