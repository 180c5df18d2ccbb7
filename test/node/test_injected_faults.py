"""Each kind of injected fault alone: sensors, injector and policy node, over real DDS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_policy import FakePolicy
from node.served_node import Served
from node.simulation import Simulation
from rclpy.parameter import Parameter

from demo.node_evidence.chunk_guard import ChunkGuard
from qvla_ros.node.fault_injector import FaultInjector
from qvla_ros.policy.action_limits import read_limits

TOPICS = [
    "camera/primary/image_raw:sensor_msgs/msg/Image",
    "camera/wrist/image_raw:sensor_msgs/msg/Image",
    "robot/state:sensor_msgs/msg/JointState",
]
LIMITS = "limits:\n" + "".join(
    f"  {name}: {{lower: -1, upper: 101, max_step: 1}}\n" for name in FakePolicy().action_names
)

Spoil = Callable[..., Served]


@pytest.fixture
def spoil(robot, tmp_path: Path) -> Iterator[Spoil]:
    """Serve behind an injector with some faults; every chunk is looked at."""
    nodes: list[FaultInjector] = []
    path = tmp_path / "limits.yaml"
    path.write_text(LIMITS)
    inputs = {topic.partition(":")[0] for topic in TOPICS}
    served = Served(
        robot, remaps={name: f"faulty/{name}" for name in inputs}, limits_file=str(path)
    )
    guard = ChunkGuard(read_limits(path, FakePolicy().action_names), ttl_ns=400_000_000)

    def serve(**faults: float) -> Served:
        values = {"topics": TOPICS, **faults}
        nodes.append(FaultInjector([Parameter(name, value=one) for name, one in values.items()]))
        robot.executor_of_all.add_node(nodes[-1])
        served.activate()
        robot.say("go")
        return served

    yield serve
    for message in robot.messages:
        guard.look(message)
    assert guard.unsafe == {}
    for node in nodes:
        node.destroy_node()
    served.close()


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"delay": 0.5, "delay_s": 0.4}, "stale_observation"),
        ({"duplicate": 1.0}, "out_of_order"),
        ({"reorder": 0.5}, "out_of_order"),
        ({"bad_encoding": 0.5}, "bad_message"),
        ({"bad_size": 0.5}, "bad_message"),
        ({"not_finite": 0.5}, "bad_message"),
        ({"stamp_jump": 0.5}, "future_stamp"),
        ({"stamp_jump": 0.5}, "stale_observation"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_spoilt_input_is_counted_by_its_reason_and_service_goes_on(
    robot, spoil: Spoil, faults: dict, reason: str
) -> None:
    served = spoil(**faults)
    counted = lambda: served.drops().get(reason, 0) >= 3  # noqa: E731
    assert robot.until(counted, 30, meanwhile=robot.sense), served.drops()
    before = len(robot.chunks)
    assert robot.until(lambda: len(robot.chunks) >= before + 2, 30, meanwhile=robot.sense)


def test_lost_messages_cost_observations_and_no_more(robot, spoil: Spoil) -> None:
    served = spoil(drop=0.5)
    missed = lambda: any(  # noqa: E731
        why.startswith(("out_of_step", "missing_")) for why in served.drops()
    )
    assert robot.until(missed, 30, meanwhile=robot.sense), served.drops()
    assert robot.until(lambda: len(robot.chunks) >= 3, 30, meanwhile=robot.sense)


def test_jitter_within_the_limits_is_put_together_again(robot, spoil: Spoil) -> None:
    served = spoil(jitter_s=0.015)
    assert robot.until(lambda: len(robot.chunks) >= 5, 30, meanwhile=robot.sense)
    stamps = [seen.stamp_ns for seen in served.policy.seen]
    assert stamps == sorted(set(stamps))


def test_in_a_pause_of_the_sensors_the_last_chunk_ends_and_after_it_a_new_one_comes(
    robot, spoil: Spoil
) -> None:
    served = spoil(pause_every_s=1.5, pause_s=0.9)
    session = lambda: served.node._session  # noqa: E731
    missed = lambda: session().loop.health(served.node._now_ns()).deadline_misses > 0  # noqa: E731
    assert robot.until(missed, 30, meanwhile=robot.sense)
    before = len(robot.chunks)
    assert robot.until(lambda: len(robot.chunks) > before, 30, meanwhile=robot.sense)


def test_a_clock_that_jumps_revokes_the_chunks_and_service_goes_on(robot) -> None:
    served = Served(robot, remaps={"/clock": "/faulty/clock"}, use_sim_time=True)
    faults = {"topics": ["clock:rosgraph_msgs/msg/Clock"], "stamp_jump": 0.03, "seed": 1}
    injector = FaultInjector([Parameter(name, value=value) for name, value in faults.items()])
    robot.executor_of_all.add_node(injector)
    simulation = Simulation(robot)
    robot.now_ns = lambda: simulation.now_ns - 50_000_000  # the clock comes later than the sensors
    try:
        served.activate()
        robot.say("go")
        assert robot.until(lambda: robot.chunks != [], 30, meanwhile=simulation.step)
        jumped = lambda: "clock_jumped_back" in robot.holds  # noqa: E731
        assert robot.until(jumped, 30, meanwhile=simulation.step)
        assert injector._plan.counts["stamp_jump"] >= 1
        assert served.drops()["clock_jumped_back"] >= 1
        before = len(robot.chunks)
        assert robot.until(lambda: len(robot.chunks) > before, 30, meanwhile=simulation.step)
    finally:
        injector.destroy_node()
        served.close()
