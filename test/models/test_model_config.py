"""The network's configuration inside a checkpoint is read strictly."""

import json
from dataclasses import asdict

import pytest
from tiny_model import LLAMA, TOWERS

from qvla_ros.errors import CheckpointError, UnsupportedModelError
from qvla_ros.models.families import config_from_json
from qvla_ros.models.openvla_oft import OpenVlaOftConfig
from qvla_ros.models.registry import empty_network

LLAMA_ARGUMENTS = {key: value for key, value in LLAMA.items() if key != "model_type"}
CONFIG = OpenVlaOftConfig(TOWERS, LLAMA_ARGUMENTS, 2, 8, 7, 8)


def as_json() -> dict:
    return json.loads(json.dumps(asdict(CONFIG)))


def test_a_configuration_survives_json():
    assert config_from_json("openvla_oft", as_json()) == CONFIG
    assert empty_network(config_from_json("openvla_oft", as_json())).linear_layers()


SPOILT = {
    "a missing field": (lambda v: v.pop("views"), "lacks the field 'views'"),
    "an unknown field": (lambda v: v.update(x=1), "unknown field 'x'"),
    "a word for a number": (lambda v: v.update(views="2"), "model_config.views must be int"),
    "a broken number": (lambda v: v.update(views=2.0), "model_config.views must be int"),
    "one tower": (lambda v: v["towers"].pop(), "towers must have 2 entries, not 1"),
    "a tower of nothing": (lambda v: v.update(towers=[1, 2]), r"towers\[0\] must be an object"),
    "a list for llama": (lambda v: v.update(llama=[]), "llama must be an object"),
    "a list inside llama": (lambda v: v["llama"].update(x=[1]), "llama.x must be"),
    "no views": (lambda v: v.update(views=0), "below 1"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_configuration_is_refused_with_the_field(fault):
    spoil, message = SPOILT[fault]
    value = as_json()
    spoil(value)
    with pytest.raises(CheckpointError, match=message):
        config_from_json("openvla_oft", value)


IMPOSSIBLE = {
    "no heads": lambda v: v["towers"][0].update(heads=0),
    "a negative width": lambda v: v["towers"][0].update(width=-8),
    "heads that do not divide": lambda v: v["towers"][0].update(heads=5),
    "patches that do not divide": lambda v: v["towers"][0].update(patch_size=13),
    "no heads of the language model": lambda v: v["llama"].update(num_attention_heads=0),
    "a word for a size": lambda v: v["llama"].update(hidden_size="wide"),
    "heads that do not divide the language model": lambda v: v["llama"].update(hidden_size=30),
    "a word for a rate": lambda v: v["llama"].update(rms_norm_eps="small"),
}


@pytest.mark.parametrize("fault", IMPOSSIBLE)
def test_sizes_that_make_no_network_are_refused(fault):
    value = as_json()
    IMPOSSIBLE[fault](value)
    with pytest.raises((CheckpointError, UnsupportedModelError)):
        empty_network(config_from_json("openvla_oft", value))
