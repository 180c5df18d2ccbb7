"""The golden question: who passes, and who does not."""

import numpy as np
import pytest
from fake_policy import FakePolicy

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.policy.policy import load_policy
from qvla_ros.policy.self_test import self_test


def right_answer() -> np.ndarray:
    return FakePolicy().infer(golden_observation(("primary", "wrist"), 2)).chunk.actions


def test_the_question_is_the_same_everywhere_and_another_one_for_each_camera():
    first, again = (golden_observation(("a", "b"), 3) for _ in range(2))
    assert np.array_equal(first.images["a"], again.images["a"])
    assert not np.array_equal(first.images["a"], first.images["b"])
    assert first.state.tolist() == pytest.approx([-0.1, 0, 0.1])


def test_without_a_golden_answer_a_finite_one_passes():
    assert "no golden answer" in self_test(FakePolicy(), 0.05)


def test_an_answer_within_the_tolerance_passes_and_one_beyond_it_does_not():
    golden = right_answer()
    golden[3, 1] += 0.04 * np.abs(golden).max()
    assert "within 0.04" in self_test(FakePolicy(golden_actions=golden), 0.05)
    with pytest.raises(ConfigurationError, match=r"differs by 0.04.*kernels compute something"):
        self_test(FakePolicy(golden_actions=golden), 0.03)


def test_a_packed_checkpoint_carries_its_golden_answer_and_the_kernels_give_it(packed_checkpoint):
    policy = load_policy(packed_checkpoint)
    assert "of the checkpoint's golden answer" in self_test(policy, 0.05)
    for name, buffer in policy.network.named_buffers():
        if name.endswith("_scale"):
            buffer.mul_(2)
    with pytest.raises(ConfigurationError, match="this machine's kernels"):
        self_test(policy, 0.05)


def test_an_answer_of_another_size_does_not_pass():
    with pytest.raises(ConfigurationError, match=r"\[8, 3\], not \[8, 2\]"):
        self_test(FakePolicy(action_names=("a", "b")), 0.05)


def test_an_answer_that_is_not_finite_does_not_pass():
    class Broken(FakePolicy):
        def infer(self, observation):
            inference = super().infer(observation)
            inference.chunk.actions[0, 0] = np.nan
            return inference

    with pytest.raises(ConfigurationError, match="not finite"):
        self_test(Broken(golden_actions=right_answer()), 1.0)
