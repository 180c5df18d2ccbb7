"""How the executables of this package run and end."""

import signal
from collections.abc import Callable
from types import FrameType

import rclpy
from rclpy.duration import Duration
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions

LEAVE_S = 0.5
"""How long a last message may take on its way before its publisher goes."""


def wait_until_heard(*publishers: Publisher) -> None:
    """Wait until what was published has arrived; a publisher that goes takes it along otherwise."""
    for publisher in publishers:
        publisher.wait_for_all_acked(Duration(seconds=LEAVE_S))


def new_executor() -> Executor:
    """One thread for all callbacks; the executor that costs least of those that there are.

    The one that waits for events looks at what came, and not at each of some forty entities every
    time, which takes a third of a millisecond; releases before Jazzy do not have it.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def run_node(
    make: Callable[[], Node],
    close: Callable[[Node, str], None],
    arguments: list[str] | None = None,
) -> int:
    """Spin a node until SIGINT or SIGTERM; then let it say good-bye. Returns the exit status.

    Args:
        make: Makes the node.
        close: Called with the node and the cause while messages can still be sent, also when a
            callback failed.
        arguments: Of the command line; ``None`` for those of the process.
    """
    # rclpy's own handlers would close the context before the last messages could be sent.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    told_to_end: list[str] = []

    def end(number: int, frame: FrameType | None) -> None:
        told_to_end.append(signal.Signals(number).name)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    node = make()
    executor = new_executor()
    executor.add_node(node)
    try:
        while not told_to_end and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    finally:
        close(node, told_to_end[0] if told_to_end else "shutdown")
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        # The interpreter takes a while to end, with its own handlers; a launcher may signal twice.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0
