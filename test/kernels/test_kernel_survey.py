"""Which kernel multiplies each layer, and what is said of its form."""

import pytest
import torch

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.kernel_survey import survey_kernels
from qvla_ros.kernels.quantized_linear import QuantizedLinear

CPU = torch.device("cpu")


def one(packed, forced="auto"):
    (found,) = survey_kernels([LayerSpec.of(packed)], CPU, torch.float32, forced)
    return found


def test_it_names_the_kernel_that_the_layer_itself_would_take(make_example) -> None:
    packed = make_example((4, 8, 0), 130, activation_bits=8).packed
    choice = QuantizedLinear(packed).kernel_for(torch.zeros(1, 130))
    found = one(packed)
    assert found.kernel == choice.name
    assert found.reason.startswith(choice.reason)


def test_it_tells_shape_widths_and_activations(make_example) -> None:
    found = one(make_example((4, 8, 0, 4), 130, step=2).packed)
    assert found.rows == (4, 3)
    assert found.columns == (130, 65)
    assert found.rows_by_width == {8: 1, 4: 2, 0: 1}
    assert str(found) == "4(3) x 130(65), rows 8:1 4:2 0:1, A16, cpu_chunked"


@pytest.mark.parametrize(
    ("form", "remark"),
    [
        ({"row_bits": (16, 4), "activation_bits": 8}, "multiply the input unrounded"),
        ({"row_bits": (4,), "groups": True}, "scales are of groups"),
        ({"row_bits": (4,), "step": 3}, "some columns of the input only"),
        ({"row_bits": (4, 0)}, "answer the bias"),
    ],
)
def test_what_the_form_of_a_layer_changes_is_said(make_example, form, remark) -> None:
    assert remark in one(make_example(columns=300, **form).packed).reason
    assert remark not in one(make_example((4, 8), 300).packed).reason


def test_a_forced_kernel_is_said_to_be_forced_and_one_that_cannot_run_is_refused(
    make_example,
) -> None:
    packed = make_example((4,), 130).packed
    assert one(packed, "reference").reason == "forced"
    with pytest.raises(ConfigurationError, match="there is no kernel"):
        one(packed, "abacus")
