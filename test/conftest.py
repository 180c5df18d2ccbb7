"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def packed_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real packed checkpoint of a tiny network with random weights."""
    from tiny_model import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
