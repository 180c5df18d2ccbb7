"""A robot in simulated time."""

from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from qvla_ros.node.conversions import ns_to_stamp

MS = 1_000_000


class Simulation:
    """Turns /clock by 50 ms whenever the robot senses."""

    def __init__(self, robot) -> None:
        self.robot = robot
        self.now_ns = 100_000 * MS
        self.clock = robot.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        robot.now_ns = lambda: self.now_ns

    def step(self) -> None:
        self.now_ns += 50 * MS
        self.clock.publish(Clock(clock=ns_to_stamp(self.now_ns)))
        self.robot.sense()
