"""Processes that die when a test wants it, e.g. ``qvla`` while it writes its n-th file."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["interrupted", "transformers", "qvla_ros.policy.policy"])


def run_killed(words: Sequence[str], writes: int) -> int:
    """Run a verb and kill it when it is about to put its ``writes``-th file into place.

    Returns:
        The process's exit code: minus the signal, or that of the verb if it wrote fewer files.
    """
    process = _CONTEXT.Process(target=_run, args=(list(words), writes))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(words: list[str], writes: int) -> None:
    from qvla_ros.cli.main import main

    replace, written = os.replace, 0

    def replace_or_die(source: str, target: str) -> None:
        nonlocal written
        written += 1
        if written == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die
    os._exit(main(words))


def run_or_die(key: tuple[str, int, int]) -> SimpleNamespace:
    """In a worker process: dies as if the simulator crashed, as often as a file says."""
    folder, _, state = key
    deaths = Path(folder) / str(state)
    if deaths.exists() and (left := int(deaths.read_text())):
        deaths.write_text(str(left - 1))
        os._exit(134)
    return SimpleNamespace(key=key)
