"""Packed layers of random codes, with the codes that they were made of."""

import pytest
from kernel_cases import make_layer

from qvla_ros.kernels import cpu


@pytest.fixture(scope="session")
def make_example():
    """``make_example(bits of each row, columns, seed, groups, step, activation_bits)``."""
    return make_layer


@pytest.fixture(params=["whole layers", "chunks of 3 rows"])
def chunking(request, monkeypatch):
    """Small layers fit one chunk; a smaller chunk makes them take the way of large ones."""
    if request.param != "whole layers":
        monkeypatch.setattr(cpu, "CHUNK_ROWS", 3)
        monkeypatch.setattr(cpu, "CHUNK_WEIGHTS", 1)
