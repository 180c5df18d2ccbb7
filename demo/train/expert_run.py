"""One attempt of the scripted expert, executed with noise; the caller records what it wants."""

from collections.abc import Iterator

import numpy as np

from demo.train.expert import Expert
from qvla_ros.evaluate.libero import LiberoTask

MAX_STEPS = 200
STEPS_AFTER_SUCCESS = 6  # the policy shall learn to let go and to move away
ROTATION_NOISE = 0.3  # of the noise of the translations

_SPREAD = np.array([1, 1, 1, ROTATION_NOISE, ROTATION_NOISE, ROTATION_NOISE, 0])


class ExpertRun:
    """Iterates over the expert's clean actions; the task moves on between two of them.

    While an action is in the caller's hands, the task is still in the state that the action
    answers, so this is the moment to record both.

    Args:
        task: Freshly reset.
        noise: Standard deviation of the noise that is added to the action before it is executed.
        rng: Source of the noise.
    """

    def __init__(self, task: LiberoTask, noise: float, rng: np.random.Generator) -> None:
        self._task = task
        self._noise = noise
        self._rng = rng
        self.succeeded = False

    def __iter__(self) -> Iterator[np.ndarray]:
        expert = Expert(self._task)
        steps_left = MAX_STEPS
        while steps_left > 0:
            action = expert.act()
            yield action
            self._task.step(action + self._rng.normal(0, 1, 7) * _SPREAD * self._noise)
            steps_left -= 1
            if not self.succeeded and self._task.success:
                self.succeeded = True
                steps_left = STEPS_AFTER_SUCCESS
