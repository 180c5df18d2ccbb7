"""What counts as an action change."""

import pytest
import torch

from qvla_ros.errors import ConfigurationError
from qvla_ros.quantize.action_metric import ActionMetric, GripperMargin


def test_the_uniform_metric_is_the_mean_square():
    actions, reference = torch.randn(3, 8, 7), torch.randn(3, 8, 7)
    expected = (actions - reference).square().mean(dim=(1, 2))
    torch.testing.assert_close(
        ActionMetric.uniform(8, 7).squared_error(actions, reference), expected
    )


def test_weights_of_steps_and_dimensions_multiply_and_have_mean_one():
    metric = ActionMetric.weighted([2.0, 0.0], [1.0, 3.0])
    assert metric.weights.tolist() == [[1.0, 3.0], [0.0, 0.0]]
    change = torch.zeros(1, 2, 2)
    change[0, 0, 1] = 2.0
    assert metric.squared_error(change, torch.zeros(1, 2, 2)).item() == 3.0  # 3 * 4 / 4


def test_a_gripper_near_its_decision_counts_and_one_far_from_it_does_not():
    margin = GripperMargin(dimensions=(1,), threshold=0.5, softness=0.1)
    metric = ActionMetric.weighted([1.0], [1.0, 1.0], margin)
    near, far = torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[0.0, 1.0]]])
    assert metric.at(near).tolist() == [[[1.0, 1.0]]]
    assert metric.at(far)[0, 0, 1] < 0.03
    assert metric.at(far)[0, 0, 0] == 1.0


def test_probes_of_a_frame_do_not_depend_on_its_company():
    metric = ActionMetric.uniform(2, 3)
    answers = torch.randn(4, 2, 3)
    together = metric.probes(5, answers, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    alone = [metric.probes(5, answer[None], generator) for answer in answers]
    assert together.equal(torch.cat(alone, dim=1))


@pytest.mark.parametrize(
    "steps, dimensions", [([-1.0], [1.0]), ([0.0], [1.0]), ([1.0], [torch.nan])]
)
def test_senseless_weights_are_refused(steps, dimensions):
    with pytest.raises(ConfigurationError, match="weights of action steps"):
        ActionMetric.weighted(steps, dimensions)


def test_a_gripper_needs_some_softness():
    with pytest.raises(ConfigurationError, match="softness"):
        GripperMargin((6,), 0.5, 0.0)
