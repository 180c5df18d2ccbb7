"""Runs the policy node until it is told to end."""

import sys
from functools import partial
from pathlib import Path

import torch

from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.policy_node import LoadPolicy, PolicyNode
from qvla_ros.node.spinning import run_node
from qvla_ros.policy.policy import Policy, load_policy


def load_configured(parameters: NodeParameters) -> Policy:
    """Load the packed checkpoint that the parameters name, for their device and threads."""
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    return load_policy(Path(parameters.checkpoint), device=parameters.device)


def main(arguments: list[str] | None = None, load: LoadPolicy = load_configured) -> int:
    """Spin a ``PolicyNode``; SIGINT and SIGTERM stop it with a hold. Returns the exit status.

    One executor thread is enough: inference has a thread of its own.
    """
    return run_node(partial(PolicyNode, load), PolicyNode.close, arguments)


if __name__ == "__main__":
    sys.exit(main())
