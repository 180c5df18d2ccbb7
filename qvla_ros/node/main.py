"""Runs the policy node until it is told to end."""

import signal
from pathlib import Path
from types import FrameType

import rclpy
import torch
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from qvla_ros.node.policy_node import LoadPolicy, PolicyNode
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
    # rclpy's own handlers would close the context before the hold could be sent.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    told_to_end: list[str] = []

    def end(number: int, frame: FrameType | None) -> None:
        told_to_end.append(signal.Signals(number).name)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    node = PolicyNode(load)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not told_to_end and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    finally:
        # Also when a callback failed: the robot must not be left with a chunk.
        node.close(told_to_end[0] if told_to_end else "shutdown")
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        # The interpreter takes a while to end, with its own handlers; a launcher may signal twice.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0
