"""Does a policy answer on this machine as it did where its checkpoint was made?"""

from typing import Protocol

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.policy.inference import ServedPolicy

DEVICE_TOLERANCE = 0.05
"""For kernels that never ran on this device; a share of the largest action, as in the node."""


class TestedPolicy(ServedPolicy, Protocol):
    """What the self-test needs of a policy."""

    image_names: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    golden_actions: np.ndarray | None
    """``float32 [horizon, action_dim]`` that answer ``golden_observation``; ``None`` if untold."""


def self_test(policy: TestedPolicy, tolerance: float) -> str:
    """Ask the golden question once, and compare with the answer in the checkpoint.

    Args:
        policy: Just loaded.
        tolerance: Largest difference, as a share of the largest golden action (at least 1e-6).

    Returns:
        What was found, in words.

    Raises:
        ConfigurationError: The answer has another size, is not finite, or is another one.
    """
    question = golden_observation(policy.image_names, len(policy.state_names))
    actions = policy.infer(question).chunk.actions
    expected = (policy.horizon, len(policy.action_names))
    if actions.shape != expected:
        raise _failed(f"the answer is {list(actions.shape)}, not {list(expected)}")
    if not np.isfinite(actions).all():
        raise _failed("the answer holds a value that is not finite")
    golden = policy.golden_actions
    if golden is None:
        return "self-test: the answer is finite (the checkpoint has no golden answer)"
    difference = float(np.abs(actions - golden).max() / max(float(np.abs(golden).max()), 1e-6))
    if not difference <= tolerance:
        raise _failed(
            f"the answer to the golden input differs by {difference:.3g} of the largest action, "
            f"more than {tolerance:g}: this machine's kernels compute something else"
        )
    return f"self-test: within {difference:.2g} of the checkpoint's golden answer"


def require_golden_answer(policy: TestedPolicy) -> None:
    """Refuse a policy on a device where nobody has seen it give the checkpoint's answer.

    Raises:
        ConfigurationError: It gives another one, or the checkpoint does not tell its answer.
    """
    if policy.golden_actions is None:
        raise ConfigurationError(
            "the checkpoint has no golden answer, so nothing shows that this GPU computes what was "
            "quantized; write it again with `qvla quantize`, or run it on the CPU"
        )
    try:
        self_test(policy, DEVICE_TOLERANCE)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"on this GPU {error}; choose the device cpu, or forbid its kernels with QVLA_TRITON=0"
        ) from error


def _failed(reason: str) -> ConfigurationError:
    return ConfigurationError(f"the self-test failed: {reason}")
