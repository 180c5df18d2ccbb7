"""How an executable ends when one of its callbacks fails; in a process of its own."""

import subprocess
import sys

PROGRAM = """
import rclpy.node
from qvla_ros.node.spinning import run_node

class Failing(rclpy.node.Node):
    def __init__(self):
        super().__init__("failing")
        self.create_timer(0.01, self.fail)

    def fail(self):
        raise OSError("the disk is gone")

run_node(Failing, lambda node, reason: print("said good-bye:", reason))
"""


def test_a_callback_that_fails_ends_the_process_but_not_before_its_good_bye(ros_domain) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert "said good-bye: shutdown" in done.stdout
    assert "the disk is gone" in done.stderr
    assert done.returncode == 1
