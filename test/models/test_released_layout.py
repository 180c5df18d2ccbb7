"""The table of tensors, against what is known of the released OpenVLA-7B."""

import hashlib
import math

import pytest

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.released_layout import (
    dead_tensors,
    expected_tensors,
    is_target,
    read_llama,
    read_towers,
)

RELEASED = {
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "text_config": {"model_type": "llama", "vocab_size": 32064, "torch_dtype": "bfloat16"},
}


def test_the_released_model_has_982_tensors_and_7_541_237_184_parameters():
    shapes = expected_tensors(read_towers(RELEASED), read_llama(RELEASED))
    assert len(shapes) == 982
    assert sum(map(math.prod, shapes.values())) == 7_541_237_184
    assert shapes["vision_backbone.fused_featurizer.blocks.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["projector.fc1.weight"] == (8704, 2176)
    assert shapes["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)


# SHA-256 over "name [shape]" lines, sorted by name, of the published table of OpenVLA-7B.
RELEASED_DIGEST = "99212ba7b2a20bff01a94924f778724810deca58ecd0cfc4beddd9b81bd1398f"


def test_every_name_and_shape_is_that_of_the_released_model():
    shapes = expected_tensors(read_towers(RELEASED), read_llama(RELEASED))
    lines = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == RELEASED_DIGEST
    assert 2 * sum(map(math.prod, shapes.values())) == 15_082_474_368


def test_43_tensors_are_dead_and_422_of_430_targets_are_live():
    towers = read_towers(RELEASED)
    dead = dead_tensors(towers)
    shapes = expected_tensors(towers, read_llama(RELEASED))
    assert sum(math.prod(shapes[name]) for name in dead) == 43_080_480
    targets = [name for name in shapes if is_target(name)]
    assert len(dead) == 43
    assert (len(targets), len(set(targets) - dead)) == (430, 422)


def test_an_unknown_tower_is_refused_by_its_name():
    with pytest.raises(UnsupportedModelError, match="'mystery-vit'"):
        read_towers({"vision_backbone_id": "mystery-vit"})


def test_another_language_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="llama"):
        read_llama({"text_config": {"model_type": "qwen2"}})


def test_openvla_keeps_its_own_norm_epsilon_unless_the_folder_states_one():
    assert read_llama(RELEASED)["rms_norm_eps"] == 1e-6
    stated = {"text_config": {"model_type": "llama", "rms_norm_eps": 1e-5}}
    assert read_llama(stated)["rms_norm_eps"] == 1e-5
