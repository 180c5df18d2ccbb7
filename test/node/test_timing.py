"""Clocks that are set back or paused, inputs out of step, chunks too late; over DDS."""

from collections.abc import Iterator

import pytest
from node.served_node import Served
from node.simulation import Simulation

from qvla_ros.sensor_messages import stamp_to_ns

MS = 1_000_000


@pytest.fixture
def simulated(robot) -> Iterator[Served]:
    served = Served(robot, use_sim_time=True)
    yield served
    served.close()


def test_a_simulated_clock_may_be_set_back_and_paused(robot, simulated: Served) -> None:
    simulation = Simulation(robot)
    simulated.activate()
    robot.say("go")
    assert robot.until(lambda: robot.chunks != [], meanwhile=simulation.step)
    assert stamp_to_ns(robot.chunks[-1].header.stamp) < 200_000 * MS
    simulation.now_ns = 10_000 * MS
    assert robot.until(lambda: "clock_jumped_back" in robot.holds, meanwhile=simulation.step)
    before = len(robot.chunks)
    assert robot.until(lambda: len(robot.chunks) > before, meanwhile=simulation.step)
    assert stamp_to_ns(robot.chunks[-1].header.stamp) < 50_000 * MS
    told, beats = len(robot.statuses), len(robot.heartbeats)
    assert robot.until(
        lambda: len(robot.statuses) > told + 1 and len(robot.heartbeats) > beats + 3
    ), "diagnostics and heartbeats go on while the clock stands still"


def test_an_image_is_not_put_together_with_a_later_one_of_another_camera(robot) -> None:
    served = Served(robot, max_observation_age_s=10.0)
    try:
        served.activate()
        robot.say("go")
        assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense)
        del robot.cameras["wrist"]
        robot.until(lambda: False, 0.2, meanwhile=robot.sense)  # what was on its way
        before = len(served.policy.seen)
        assert robot.until(
            lambda: served.drops().get("out_of_step_camera_wrist", 0) > 5, meanwhile=robot.sense
        )
        assert len(served.policy.seen) == before
    finally:
        served.close()


def test_when_no_new_chunk_comes_in_time_the_command_holds_and_the_miss_is_counted(robot) -> None:
    served = Served(robot, publish_command=True, gripper_name="grip")
    try:
        served.activate()
        robot.say("go")
        moving = lambda: any(c.position[0] > 0 for c in robot.commands)  # noqa: E731
        assert robot.until(moving, meanwhile=robot.sense)
        robot.spin(0.7)
        assert list(robot.commands[-1].position) == [0, 0, 100]
        session = served.node._session
        assert session.loop.health(served.node._now_ns()).deadline_misses == 1
    finally:
        served.close()
