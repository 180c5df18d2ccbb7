"""What a model folder holds, from its small files and the headers of its shards only."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qvla_ros.models.released_folder import (
    SIDE_FILES,
    find_shards,
    open_small_files,
    read_headers,
)
from qvla_ros.models.released_layout import (
    Shape,
    dead_tensors,
    expected_tensors,
    is_target,
    read_llama,
    read_towers,
)


@dataclass(frozen=True, slots=True)
class FolderSurvey:
    """The size of a model folder, and how it differs from what its ``config.json`` promises.

    Attributes:
        family: As ``released_folder`` tells it.
        parameters: Numbers in all tensors of the shards, dead ones included.
        bf16_bytes: Their bytes.
        targets: Weight matrices that the method gives bits to.
        live_targets: Those that are executed.
        dead_tensors: Tensors that no forward pass reads.
        dead_parameters: Numbers in them.
        parameters_by_part: Tower, projector or language model to its numbers.
        dtypes: As stored, to the number of tensors.
        shards: File name to its bytes.
        side_files: Likewise, of head and state projector.
        missing, unknown, misshapen: Names of tensors, sorted.
        statistics: Names of the data sets whose ranges are known.
    """

    family: str
    parameters: int
    bf16_bytes: int
    targets: int
    live_targets: int
    dead_tensors: int
    dead_parameters: int
    parameters_by_part: Mapping[str, int]
    dtypes: Mapping[str, int]
    shards: Mapping[str, int]
    side_files: Mapping[str, int]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]
    statistics: tuple[str, ...]


def survey_folder(path: Path) -> FolderSurvey:
    """Look at a model folder; no tensor is read.

    Raises:
        UnsupportedModelError: It is no folder of a known family, or a shard's header is corrupt.
    """
    small = open_small_files(path)
    towers, llama = read_towers(small.config), read_llama(small.config)
    expected = expected_tensors(towers, llama)
    found = read_headers(find_shards(path))
    dead = dead_tensors(towers)
    targets = {name for name in expected if is_target(name)}
    shapes = {name: entry.shape for name, entry in found.items()}
    by_part = Counter[str]()
    for name, shape in shapes.items():
        by_part[_part(name)] += math.prod(shape)
    return FolderSurvey(
        family=small.family,
        parameters=_count(shapes.values()),
        bf16_bytes=2 * _count(shapes.values()),
        targets=len(targets & shapes.keys()),
        live_targets=len((targets - dead) & shapes.keys()),
        dead_tensors=len(dead & shapes.keys()),
        dead_parameters=_count(shapes[name] for name in dead & shapes.keys()),
        parameters_by_part=dict(sorted(by_part.items())),
        dtypes=dict(Counter(entry.dtype for entry in found.values())),
        shards=_sizes(sorted({entry.shard for entry in found.values()})),
        side_files=_sizes(
            one for stem in SIDE_FILES for one in sorted(path.glob(f"{stem}--*.pt"))
        ),
        missing=tuple(sorted(expected.keys() - shapes.keys())),
        unknown=tuple(sorted(shapes.keys() - expected.keys())),
        misshapen=tuple(
            sorted(
                name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]
            )
        ),
        statistics=tuple(sorted(small.statistics)),
    )


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "vision_backbone" else words[0]


def _count(shapes: Iterable[Shape]) -> int:
    return sum(map(math.prod, shapes))


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in files}
