"""Random weights that look like those of a trained network, block by block, the same for a seed.

Rows and columns of a matrix differ in size (log-normal), a few channels of every norm stand out as
they do in trained transformers, and what is added to a residual stream is small enough that
activations stay finite through any number of layers. Every tensor has its own random stream, drawn
by its name, so its values do not depend on which other tensors are made, or in which order.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qvla_ros.models.released_layout import Shape

ACTION_BINS = 256
"""Tokens that stand for actions in an autoregressive model."""

_BLOCK = 1 << 22  # numbers drawn at once
_SPREAD = 0.25  # of the logarithms of row and column sizes
_OUTLIERS = 1 / 200  # share of a norm's channels that stand out
_OUTLIER_FACTOR = 8.0
_RESIDUAL = (".attn.proj.", ".mlp.fc2.", ".o_proj.", ".down_proj.")  # end in a residual stream
_WAVES = 12  # smooth functions that neighbouring action bins share


@dataclass(frozen=True, slots=True)
class SyntheticWeights:
    """Draws tensors of the released layout.

    Attributes:
        seed: Of everything.
        depth: Residual blocks of the deepest part, which keeps the streams bounded.
        action_rows: First and last row (exclusive) of ``lm_head`` that stand for actions.
    """

    seed: int
    depth: int
    action_rows: tuple[int, int]

    def blocks(self, name: str, shape: Shape) -> Iterator[Tensor]:
        """The tensor as flat float32 pieces, in order; at most some 16 MB are held."""
        random = self._random(name)
        if len(shape) < 2 or shape[0] == 1:
            yield torch.from_numpy(_vector(random, name, math.prod(shape)))
            return
        rows, columns = shape[0], math.prod(shape[1:])
        row_sizes = random.lognormal(0.0, _SPREAD, rows).astype(np.float32)
        column_sizes = random.lognormal(0.0, _SPREAD, columns).astype(np.float32)
        # Embedded words are looked up, not summed: their size does not depend on the width.
        gain = 0.3 if "embed_tokens" in name else self._gain(name) / math.sqrt(columns)
        column_sizes *= np.float32(gain)
        step = max(1, _BLOCK // columns)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            block = random.standard_normal((count, columns), dtype=np.float32)
            block *= row_sizes[start : start + count, None]
            if "lm_head" in name:
                self._shape_bins(block, start)
            block *= column_sizes
            yield torch.from_numpy(block.reshape(-1))

    def tensor(self, name: str, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The whole tensor."""
        tensor = torch.empty(math.prod(shape), dtype=dtype)
        start = 0
        for block in self.blocks(name, shape):
            tensor[start : start + len(block)] = block
            start += len(block)
        return tensor.reshape(shape)

    def _gain(self, name: str) -> float:
        if any(part in name for part in _RESIDUAL):
            return 1 / math.sqrt(2 * self.depth)
        return 0.5 if name.endswith("model.fc2.weight") else 1.0

    def _shape_bins(self, rows: np.ndarray, start: int) -> None:
        """Make action tokens likelier than words, and neighbouring bins alike, as if trained."""
        first, last = self.action_rows
        low, high = max(first, start), min(last, start + len(rows))
        rows *= 0.5
        if low >= high:
            return
        shared = self._random("action bins")
        waves = shared.standard_normal((_WAVES, rows.shape[1]), dtype=np.float32)
        turns = np.outer(np.arange(low, high) - first, np.arange(_WAVES)) / ACTION_BINS
        smooth = (6 / math.sqrt(_WAVES)) * np.cos(np.pi * turns).astype(np.float32) @ waves
        rows[low - start : high - start] += smooth

    def _random(self, name: str) -> np.random.Generator:
        digest = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
        words = [self.seed, *map(int, digest)]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


def _vector(random: np.random.Generator, name: str, size: int) -> np.ndarray:
    values = random.standard_normal(size, dtype=np.float32)
    if name.endswith(".weight"):  # of a norm
        values = 1 + np.float32(0.1) * values
        outliers = random.random(size) < _OUTLIERS
        return np.where(outliers, _OUTLIER_FACTOR * values, values).astype(np.float32)
    if name.endswith("scale_factor"):
        return np.float32(0.2) * np.exp(np.float32(0.5) * values)
    return np.float32(0.02 if name.endswith("bias") else 0.3) * values
