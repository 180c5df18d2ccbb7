"""Weights that are fetched when they are needed, so that a network never is in memory as a whole.

A network whose ``Linear`` and ``Embedding`` modules fetch their weights has them on the ``meta``
device: shapes and names are there, the numbers are not. What was fetched last is kept, up to a
limit: one block of a 7B model, or all of a small one. Whoever runs the network in stages
(``stages.py``) therefore reads each block once.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvla_ros.errors import UnsupportedModelError

HELD_BYTES = 1 << 30
"""Fetched weights that are kept: a block of Llama-2 7B takes 0.8 GB in float32."""

_LENGTH_BYTES = 8  # of a shard's header
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Weight(Protocol):
    """A tensor that can be had when it is needed. Two of them are the same one by identity."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    def read(self) -> Tensor:
        """The tensor in memory of its own, or shared and not to be written to; any float dtype."""

    def rows(self, index: Sequence[int]) -> Tensor:
        """Some of its rows, in the order of ``index``."""

    def reshaped(self, shape: tuple[int, ...]) -> "Weight":
        """The same numbers in another shape."""


class _Shared:
    """A copied network fetches from the same place."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> Any:
        return self


@dataclass(frozen=True, slots=True, eq=False)
class ShardWeight(_Shared):
    """A tensor in a safetensors shard.

    Attributes:
        path: The shard.
        name: In the shard.
        dtype: As it is stored.
        shape: Of the tensor.
        begin: First byte, counted from the start of the file.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in the dtype of the file.

        Raises:
            UnsupportedModelError: The shard cannot be read, or became shorter.
        """
        return self._read([(0, self.nbytes)]).view(self.dtype).view(self.shape)

    def rows(self, index: Sequence[int]) -> Tensor:
        """Rows ``[len(index), ...]``; nothing else is read."""
        size = self.nbytes // self.shape[0]
        data = self._read([(row * size, size) for row in index])
        return data.view(self.dtype).view(len(index), *self.shape[1:])

    def reshaped(self, shape: tuple[int, ...]) -> "ShardWeight":
        """The same numbers in another shape."""
        if shape == self.shape:
            return self
        return ShardWeight(self.path, self.name, self.dtype, shape, self.begin)

    def _read(self, parts: Sequence[tuple[int, int]]) -> Tensor:
        # Read, not mapped: mapped pages would count as this program's memory.
        buffer = torch.empty(sum(size for _, size in parts), dtype=torch.uint8)
        view = buffer.numpy().data
        try:
            with self.path.open("rb", buffering=0) as file:
                for start, size in parts:
                    file.seek(self.begin + start)
                    while size:
                        count = file.readinto(view[:size])
                        if not count:
                            raise UnsupportedModelError(
                                f"{self.path} became shorter while {self.name!r} was read"
                            )
                        view, size = view[count:], size - count
        except OSError as error:
            raise UnsupportedModelError(f"cannot read the shard {self.path}: {error}") from error
        return buffer


class HeldWeight(_Shared):
    """A tensor that is in memory anyway, in the dtype of its file."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self._tensor.shape)

    def read(self) -> Tensor:
        """The tensor."""
        return self._tensor

    def rows(self, index: Sequence[int]) -> Tensor:
        """Rows ``[len(index), ...]``."""
        return self._tensor[list(index)]

    def reshaped(self, shape: tuple[int, ...]) -> "HeldWeight":
        """The same numbers in another shape."""
        return HeldWeight(self._tensor.reshape(shape))


class WeightCache(_Shared):
    """The weights that were fetched last, in float32, up to a limit."""

    def __init__(self, limit_bytes: int = HELD_BYTES) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._held: OrderedDict[Weight, Tensor] = OrderedDict()

    def get(self, weight: Weight) -> Tensor:
        """The weight in float32; not to be written to."""
        found = self._held.pop(weight, None)
        if found is None:
            size = 4 * math.prod(weight.shape)
            while self._held and self._bytes + size > self._limit:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
            found = weight.read().float()
            self._bytes += found.nbytes
        self._held[weight] = found
        return found


class FetchedLinear(nn.Linear):
    """A ``Linear`` whose weight is fetched whenever it runs; its bias is in memory.

    Attributes:
        source: Where the weight comes from.
    """

    source: Weight

    def __init__(self, linear: nn.Linear, source: Weight, cache: WeightCache) -> None:
        """Take the place of ``linear``."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.source = source
        self._cache = cache

    def fetched(self) -> Tensor:
        """The weight, float32 ``[rows, columns]``; not to be written to."""
        return self._cache.get(self.source)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Linear)
        """``input · Wᵀ + bias``."""
        return F.linear(input, self.fetched(), self.bias)


class FetchedEmbedding(nn.Embedding):
    """An ``Embedding`` that fetches the rows it is asked for.

    Attributes:
        source: Where the table is.
    """

    source: Weight

    def __init__(self, embedding: nn.Embedding, source: Weight) -> None:
        """Take the place of ``embedding``."""
        super().__init__(
            embedding.num_embeddings, embedding.embedding_dim, _weight=embedding.weight
        )
        self.source = source

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Embedding)
        """Rows for token ids, float32 ``[..., width]``.

        Raises:
            UnsupportedModelError: The table has no such row; behind it lies another tensor.
        """
        wanted, place = input.unique(return_inverse=True)
        for token in wanted[(wanted < 0) | (wanted >= self.num_embeddings)].tolist():
            raise UnsupportedModelError(
                f"the token {token} is not among the {self.num_embeddings} of the embedding: the "
                "tokenizer is of another model"
            )
        return self.source.rows(wanted.tolist()).float()[place]


def placeholder(weight: Weight) -> Tensor:
    """What stands in a network for a weight that is not there."""
    return torch.empty(weight.shape, dtype=torch.float32, device="meta")


def is_fetched(network: nn.Module, name: str) -> bool:
    """Whether the parameter of that name can be fetched when its module runs."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and isinstance(
        network.get_submodule(module), (nn.Linear, nn.Embedding)
    )


def fetch_weights(network: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Let the modules of a network fetch their weights, which stand there as placeholders.

    Args:
        network: Changed in place.
        weights: Parameter name to where it is; all of them as ``is_fetched`` says.
    """
    cache = WeightCache()
    for name, weight in weights.items():
        path = name.removesuffix(".weight")
        module = network.get_submodule(path)
        parent, _, leaf = path.rpartition(".")
        replacement = (
            FetchedLinear(module, weight, cache)
            if isinstance(module, nn.Linear)
            else FetchedEmbedding(_embedding(module), weight)
        )
        setattr(network.get_submodule(parent), leaf, replacement)


def stored_value(network: nn.Module, name: str) -> Tensor:
    """A parameter of a network, fetched if it is not in memory; in the dtype that it has there."""
    module = network.get_submodule(name.rpartition(".")[0])
    if name.endswith(".weight") and isinstance(module, (FetchedLinear, FetchedEmbedding)):
        return module.source.read()
    return network.get_parameter(name).detach()


def shard_weights(shard_of: Mapping[str, Path]) -> dict[str, ShardWeight]:
    """Where each tensor of a folder's shards lies; no weight is read.

    Args:
        shard_of: Tensor name to its shard, as ``released_folder.require_tensors`` has checked it.

    Raises:
        UnsupportedModelError: A shard cannot be read.
    """
    found: dict[str, ShardWeight] = {}
    for path in sorted(set(shard_of.values())):
        header, start = _header(path)
        for name in (name for name, shard in shard_of.items() if shard == path):
            entry = header[name]
            begin = start + int(entry["data_offsets"][0])
            shape = tuple(int(size) for size in entry["shape"])
            found[name] = ShardWeight(path, name, _DTYPES[entry["dtype"]], shape, begin)
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON of a shard's header, and the first byte after it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            return json.loads(file.read(length)), _LENGTH_BYTES + length
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read the shard {path}: {error}") from error


def _embedding(module: nn.Module) -> nn.Embedding:
    if not isinstance(module, nn.Embedding):
        raise ValueError(f"{module} fetches no weight")
    return module
