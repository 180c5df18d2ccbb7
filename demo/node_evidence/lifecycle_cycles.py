"""Configure, activate, serve, deactivate and clean up, again and again, in one process over DDS."""

from dataclasses import dataclass

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from demo.node_evidence.processes import resident_bytes, running, use_private_domain
from demo.node_evidence.sensor_node import SensorNode
from qvla_ros.msg import ActionChunk

CYCLE = (
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
)


@dataclass(frozen=True, slots=True)
class Cycles:
    """What came of it.

    Attributes:
        completed: Cycles in which all transitions succeeded, a chunk came and a hold was last.
        memory_growth_bytes: Resident memory after the last cycle, less that after the tenth part.
    """

    completed: int
    memory_growth_bytes: int


def run_cycles(count: int) -> Cycles:
    """Go round ``count`` times."""
    use_private_domain()
    with running("demo.node_evidence.stand_in_node", {"checkpoint": "stand-in"}) as node:
        rclpy.init()
        messages: list[ActionChunk] = []
        sensors = SensorNode(16, 16, messages.append)
        completed, settled = 0, 0
        try:
            sensors.say("go")
            for number in range(count):
                completed += _cycle(sensors, messages)
                if number == count // 10:
                    settled = resident_bytes(node)
            growth = resident_bytes(node) - settled
        finally:
            sensors.close()
    return Cycles(completed, growth)


def _cycle(sensors: SensorNode, messages: list[ActionChunk]) -> bool:
    messages.clear()
    configure, activate, deactivate, cleanup = CYCLE
    if not _change(sensors, configure) or not _change(sensors, activate):
        return False

    def a_chunk_came() -> bool:
        sensors.send_frame()
        return any(message.horizon for message in messages)

    came = sensors.spin_until(a_chunk_came, 10.0)
    if not _change(sensors, deactivate):
        return False
    held = sensors.spin_until(lambda: messages[-1].hold_reason == "deactivated", 5.0)
    return _change(sensors, cleanup) and came and held


def _change(sensors: SensorNode, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return sensors.call(ChangeState, "policy/change_state", request, 30.0).success
