"""Session, worker and scheduler under a hail of faults on simulated time: no DDS, no waiting."""

import logging
import random
import tempfile
from collections import Counter
from pathlib import Path

from sensor_msgs.msg import Image, JointState

from demo.node_evidence.chunk_guard import REFUSALS, ChunkGuard
from demo.node_evidence.soak_result import SoakResult
from demo.node_evidence.stand_in_policy import HangingPolicy, write_limits
from qvla_ros.msg import ActionChunk
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.fault_parameters import FaultParameters
from qvla_ros.node.fault_plan import FaultPlan
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session import Session
from qvla_ros.policy.frame_sync import STATE, Sample, camera_source
from qvla_ros.policy.health import LoopState
from qvla_ros.policy.memory import process_memory
from qvla_ros.policy.schedule import ScheduledAction
from qvla_ros.sensor_messages import stamp_to_ns

MS = 1_000_000
TICK_NS = 10 * MS
FRAME_TICKS = 3
START_NS = 1_000_000_000_000
FAULTS = FaultParameters(
    drop=0.1,
    duplicate=0.1,
    reorder=0.05,
    delay=0.1,
    delay_s=0.3,
    jitter_s=0.02,
    pause_every_s=20.0,
    pause_s=0.7,
    bad_encoding=0.05,
    bad_size=0.05,
    not_finite=0.1,
    stamp_jump=0.05,
)
PIXELS = bytes(16 * 16 * 3)


def soak(fault_count: int, strategy: str = "latest_only", seed: int = 0) -> SoakResult:
    """Inject at least ``fault_count`` faults into a node of that ``chunk_strategy``."""
    quiet = logging.getLogger("qvla_ros")
    before, quiet.level = quiet.level, logging.CRITICAL
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _Soak(Path(folder), strategy, seed).run(fault_count)
    finally:
        quiet.level = before


class _Soak:
    def __init__(self, folder: Path, strategy: str, seed: int) -> None:
        self.now_ns = START_NS
        self._random = random.Random(seed)
        self._plan = FaultPlan(FAULTS)
        self._policy = HangingPolicy(0.2, restless=0.2, seed=seed, spend=self._spend)
        parameters = NodeParameters(
            limits_file=str(write_limits(folder)),
            chunk_strategy=strategy,
            reset_cooldown_s=0.0,
            request_period_s=0.05,
            gripper_name="gripper",
        )
        self._session = Session(
            self._policy, parameters, lambda: self.now_ns, self._on_message, lambda _: None
        )
        settings = self._session.scheduler.settings
        assert settings.limits is not None
        self._limits, self._ttl_ns = settings.limits, settings.ttl_ns
        self._guard = ChunkGuard(settings.limits, settings.ttl_ns)
        self._counts: Counter[str] = Counter()
        self._passed_ns = 0
        self._instructions = 0

    def run(self, fault_count: int) -> SoakResult:
        self._session.instruct("go", self.now_ns)
        self._session.start()
        tick, settled_bytes = 0, 0
        while self._fault_count() < fault_count:
            tick += 1
            self._tick(tick)
            if settled_bytes == 0 and self._fault_count() >= fault_count // 5:
                settled_bytes = process_memory().get("process_resident", 0)
        self._session.stop("end", 5.0)
        faults = self._plan.counts + self._policy.counts + self._counts
        drops = self._session.scheduler.status(self.now_ns).drops
        return SoakResult(
            faults=dict(faults),
            unsafe=dict(self._guard.unsafe),
            refused={why: drops.get(why, 0) for why in REFUSALS},
            chunks=self._guard.chunks,
            seconds=self._passed_ns / 1e9,
            memory_growth_bytes=process_memory().get("process_resident", 0) - settled_bytes,
        )

    def _tick(self, tick: int) -> None:
        self._spend(TICK_NS)
        self._misuse(tick)
        if tick % FRAME_TICKS == 0:
            self._sense()
        for source, message in self._plan.due(self.now_ns):
            sample = Sample(stamp_to_ns(message.header.stamp), message)
            self._session.add(source, sample, self.now_ns)
        self._session.ask(self.now_ns)
        if not self._session.loop.wait_idle(0.02):
            self._leave_the_hang()
        if self._session.loop.state is LoopState.FAULTED:
            self._session.ask(self.now_ns)
            self._session.reset(serve=True)
        self._look_at_the_action()

    def _misuse(self, tick: int) -> None:
        """What operators, clocks and drivers do, beside the sensors."""
        chance = self._random.random()
        if chance < 0.002:
            self._counts["clock_jump"] += 1
            self._plan.forget()
            self.now_ns += self._random.choice((-3000, -100, 3000)) * MS
        elif chance < 0.004:
            self._instructions += 1
            self._session.instruct(f"task {self._instructions}", self.now_ns)
        elif chance < 0.005:
            self._session.stop("paused")
            self._session.start()
        elif tick % 2000 == 0:
            self._policy.hang_next()

    def _sense(self) -> None:
        stamp = ns_to_stamp(self.now_ns)
        for name in self._policy.image_names:
            image = Image(encoding="rgb8", height=16, width=16, step=48, data=PIXELS)
            image.header.stamp = stamp
            self._plan.take(camera_source(name), image, self.now_ns)
        state = JointState(name=["x", "y"], position=[0.5, self._random.random()])
        state.header.stamp = stamp
        self._plan.take(STATE, state, self.now_ns)

    def _leave_the_hang(self) -> None:
        self._session.reset(serve=True)
        self._policy.release.set()

    def _look_at_the_action(self) -> None:
        due = self._session.scheduler.action_at(self.now_ns)
        if isinstance(due, ScheduledAction):
            broken = self._limits.violation(due.action[None]) is not None
            if broken or not due.age_ns + TICK_NS * 2 >= 0 or due.age_ns >= self._ttl_ns:
                self._guard.unsafe["action"] += 1

    def _on_message(self, message: ActionChunk) -> None:
        self._guard.look(message)

    def _spend(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds
        self._passed_ns += nanoseconds

    def _fault_count(self) -> int:
        return sum(sum(c.values()) for c in (self._plan.counts, self._policy.counts, self._counts))
