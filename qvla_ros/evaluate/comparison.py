"""Two policies on the same observations: how far apart are their actions?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qvla_ros.evaluate.fidelity import ActionError, ActionScale, ChunkPairs, Grippers, action_error
from qvla_ros.observation import Observation
from qvla_ros.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class NormalizedActions:
    """Answers of one policy in normalised action space.

    Attributes:
        values: float32 ``[observations, horizon, action_dim]``.
    """

    values: np.ndarray

    def error_against(self, reference: "NormalizedActions", scale: ActionScale) -> ActionError:
        """The error of these answers, taking ``reference`` for right."""
        pairs = ChunkPairs.whole(self.values, reference.values)
        return action_error(pairs, grippers=Grippers.of(scale))


def answer_all(
    policy: Policy,
    observations: Sequence[Observation],
    on_progress: Callable[[int, int], None] | None = None,
) -> NormalizedActions:
    """Ask a policy about every observation, one at a time as on a robot."""
    answers = []
    for done, observation in enumerate(observations, start=1):
        inputs = policy.processing.prepare(observation)
        answers.append(policy.normalized_actions(inputs)[0].numpy())
        if on_progress is not None:
            on_progress(done, len(observations))
    return NormalizedActions(np.stack(answers))
