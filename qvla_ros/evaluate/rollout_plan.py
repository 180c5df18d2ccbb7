"""Which closed-loop episodes are wanted."""

from dataclasses import dataclass

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.rollout_record import EpisodeKey

MAX_STEPS = 220
"""Control steps after which an episode has failed."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Distinct episodes of one suite.

    Attributes:
        suite: LIBERO suite.
        tasks: Indices of tasks.
        episodes: Initial states 0 to ``episodes - 1`` of each task.
        max_steps: Control steps after which an episode has failed.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks):
            raise ConfigurationError(
                f"tasks {list(self.tasks)}: a task stands there twice, but a repeated episode "
                "is not another sample"
            )
        if not self.tasks or self.episodes < 1 or self.max_steps < 1:
            raise ConfigurationError("at least one task, one episode and one step are needed")

    @property
    def keys(self) -> list[EpisodeKey]:
        """All episodes, task by task."""
        return [(self.suite, task, state) for task in self.tasks for state in range(self.episodes)]
