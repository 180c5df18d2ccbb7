"""A policy from a packed checkpoint whose tensors do not fit its network."""

import pytest
import torch
from tiny_model import tiny_checkpoint

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.checkpoint.writer import write_checkpoint
from qvla_ros.errors import CheckpointError
from qvla_ros.policy.policy import load_policy

QKV = "float.vision_backbone.featurizer.blocks.0.attn.qkv.bias"
Q_PROJ = "float.language_model.model.layers.0.self_attn.q_proj.bias"
FAULTS = {
    "a missing bias": lambda tensors: tensors.pop(QKV),
    "a bias of another shape": lambda tensors: tensors.update({QKV: torch.zeros(3)}),
    "a bias that the network has not": lambda tensors: tensors.update({Q_PROJ: torch.zeros(32)}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_biases_must_be_those_of_the_network(tmp_path, fault):
    checkpoint = read_checkpoint(tiny_checkpoint(tmp_path))
    tensors = dict(checkpoint.tensors)
    FAULTS[fault](tensors)
    path = tmp_path / "spoilt"
    write_checkpoint(path, checkpoint.manifest, checkpoint.layers, tensors)
    with pytest.raises(CheckpointError, match="the bias of"):
        load_policy(path)
