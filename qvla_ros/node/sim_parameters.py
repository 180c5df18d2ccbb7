"""The simulation node's parameters, each declared once: here."""

from dataclasses import dataclass

from qvla_ros.node.declaration import check_values, parameter
from qvla_ros.sensor_messages import SECOND_NS


@dataclass(frozen=True, slots=True)
class SimParameters:
    """The values that the simulation runs with, all set at launch."""

    suite: str = parameter("libero_spatial", "LIBERO suite.", read_only=True)
    tasks: tuple[int, ...] = parameter((0, 2), "Indices of its tasks.", read_only=True)
    episodes: int = parameter(
        5, "Official initial states 0 to N-1 of each task.", (1, 1000), read_only=True
    )
    max_steps: int = parameter(
        220, "Control steps after which an episode has failed.", (1, 10000), read_only=True
    )
    out: str = parameter(
        "", "JSON lines of the episodes; an interrupted run goes on there.", read_only=True
    )
    simulator_python: str = parameter(
        "", "Python in whose environment LIBERO is installed; empty: this one.", read_only=True
    )
    image_transport: str = parameter(
        "compressed",
        "How the cameras are published.",
        choices=("raw", "compressed"),
        read_only=True,
    )
    camera_every: int = parameter(
        8, "Control steps from one image of each camera to the next.", (1, 100), read_only=True
    )
    real_time_factor: float = parameter(
        0.0,
        "Simulated seconds in a second; 0: the clock stands still until the command that is due "
        "has come.",
        (0.0, 10.0),
        read_only=True,
    )
    gripper_open: float = parameter(
        0.04, "Position of open in gripper/command, as in the adapter.", read_only=True
    )
    gripper_closed: float = parameter(
        0.0, "Position of closed in gripper/command, as in the adapter.", read_only=True
    )
    start_timeout_s: float = parameter(
        120.0, "How long to wait for the policy node and the adapter, s.", (1.0, 3600.0),
        read_only=True,
    )  # fmt: skip
    answer_timeout_s: float = parameter(
        60.0, "How long to wait for one command while the clock stands still, s.", (1.0, 3600.0),
        read_only=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def start_timeout_ns(self) -> int:
        """``start_timeout_s`` in nanoseconds."""
        return round(self.start_timeout_s * SECOND_NS)

    @property
    def answer_timeout_ns(self) -> int:
        """``answer_timeout_s`` in nanoseconds."""
        return round(self.answer_timeout_s * SECOND_NS)
