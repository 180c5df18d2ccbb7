"""Where an interrupted verb goes on: a folder beside its result, gone when that is there."""

import argparse
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.cli.estimates import ESTIMATES
from qvla_ros.cli.run_config import beside, is_set
from qvla_ros.errors import ConfigurationError, QvlaError

if TYPE_CHECKING:
    from qvla_ros.models.registry import LoadedModel
    from qvla_ros.quantize.journal import Journal

_PLACES = ("out", "work", "config", "json", "save_every", "model")
"""Options that do not change the result; the model counts by its fingerprint."""

_DIGITS = 16  # of a fingerprint; enough to tell two apart, short enough to read


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the verb works, and where it keeps what is done."""
    group = parser.add_argument_group(
        "work", "an interrupted run goes on when it is started again"
    )
    group.add_argument(
        "--work", type=Path, metavar="DIR", help="for unfinished work (default: OUT.work)"
    )
    group.add_argument(
        "--save-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how often a measurement is saved (default 30)",
    )
    group.add_argument(
        "--threads", type=int, help="of the network; another number may round otherwise"
    )


def use_threads(arguments: argparse.Namespace) -> None:
    """Set PyTorch's threads, or note how many it has: results depend on them."""
    import torch

    if arguments.threads is None:
        arguments.threads = torch.get_num_threads()
    elif arguments.threads < 1:
        raise ConfigurationError(f"--threads must be at least 1, not {arguments.threads}")
    torch.set_num_threads(arguments.threads)


def work_path(arguments: argparse.Namespace) -> Path:
    """Where the work folder is, or will be."""
    return Path(arguments.work or beside(arguments.out, "work"))


@contextmanager
def work_folder(arguments: argparse.Namespace, model: "LoadedModel") -> "Iterator[Journal]":
    """Begin a work folder, or go on in one that was begun for the very same.

    It goes when the work is done (the estimates in it stay beside the result), and when the work cannot be done and nothing of it is kept.

    Raises:
        ConfigurationError: It was begun for something else, or is no work folder.
    """
    from qvla_ros.quantize.journal import Journal

    folder = work_path(arguments)
    journal = Journal(folder, _purpose(arguments, model), arguments.save_every)
    try:
        yield journal
    except QvlaError:
        if not any(folder.glob("*.safetensors")):
            shutil.rmtree(folder)
        raise
    if (folder / ESTIMATES).exists():
        shutil.copyfile(folder / ESTIMATES, beside(arguments.out, ESTIMATES))
    shutil.rmtree(folder)
    for partial in arguments.out.parent.glob(f".{arguments.out.name}.*.partial"):
        partial.unlink()  # of an interrupted writing of the result


def _purpose(arguments: argparse.Namespace, model: "LoadedModel") -> dict[str, str | int | float]:
    from qvla_ros.quantize.file_size import CREATED_BY

    purpose = {"version": CREATED_BY, "model": model.fingerprint[:_DIGITS]}
    for name, value in vars(arguments).items():
        if name in _PLACES or not is_set(value):
            continue
        if isinstance(value, list) and all(isinstance(one, Path) for one in value):
            for index, path in enumerate(value):
                purpose[f"{name}[{index}] {path.name}"] = _content(path)
        else:
            purpose[name] = _content(value) if isinstance(value, Path) else str(value)
    return dict(purpose)


def _content(path: Path) -> str:
    """Fingerprint of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    try:
        files = (
            sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        )
        for file in files:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()[:_DIGITS]
