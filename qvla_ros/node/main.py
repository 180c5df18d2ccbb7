"""Runs the policy node until it is told to end."""

import sys
from functools import partial
from pathlib import Path

import torch

from qvla_ros.node.policy_node import LoadPolicy, PolicyNode
from qvla_ros.node.spinning import run_node
from qvla_ros.policy.policy import Policy, load_policy


def load_with_threads(path: Path, threads: int | None) -> Policy:
    """Load a packed checkpoint; inference will use this many threads, ``None`` for torch's own."""
    if threads is not None:
        torch.set_num_threads(threads)
    return load_policy(path)


def main(arguments: list[str] | None = None, load: LoadPolicy = load_with_threads) -> int:
    """Spin a ``PolicyNode``; SIGINT and SIGTERM stop it with a hold. Returns the exit status.

    One executor thread is enough: inference has a thread of its own.
    """
    return run_node(partial(PolicyNode, load), PolicyNode.close, arguments)


if __name__ == "__main__":
    sys.exit(main())
