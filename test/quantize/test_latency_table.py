"""Latency tables: what a file must say, and whose time a layer gets."""

import json
from dataclasses import replace

import pytest

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.latency_table import (
    LatencyTable,
    LayerLatency,
    load_latency_table,
    save_latency_table,
)

TIMES = {2: 0.001, 3: 0.0015, 4: 0.002, 8: 0.003, 16: 0.006}
TABLE = LatencyTable(
    "a board",
    5.0,
    (
        LayerLatency("a", 8, 4, 16, 0.5, TIMES),
        LayerLatency(None, 8, 4, 16, 0.25, TIMES),
        LayerLatency(None, 8, 4, 8, 0.125, TIMES),
    ),
)


def test_a_table_survives_its_file(tmp_path):
    save_latency_table(TABLE, tmp_path / "t.json")
    assert load_latency_table(tmp_path / "t.json") == TABLE


def test_a_layer_gets_its_own_time_before_that_of_its_sizes():
    own, shaped = (TABLE.of(LinearLayer(name, 8, 4, "language")) for name in ("a", "b"))
    assert (own.fixed_ms, shaped.fixed_ms) == (0.5, 0.25)
    assert TABLE.of(LinearLayer("a", 8, 4, "language"), activation_bits=8).fixed_ms == 0.125
    assert own.of_width(0) == 0
    assert own.of_width(3) == 0.0015


def test_a_layer_that_was_not_measured_is_named():
    with pytest.raises(ConfigurationError, match=r"no entry for 'c' \(9 x 4\)"):
        TABLE.of(LinearLayer("c", 9, 4, "language"))
    with pytest.raises(ConfigurationError, match="measured 'a' at 8 x 4"):
        TABLE.of(LinearLayer("a", 9, 4, "language"))


def test_a_width_that_was_not_measured_is_named():
    entry = replace(TABLE.layers[0], row_ms={4: 0.1})
    with pytest.raises(ConfigurationError, match="no 3-bit rows of a"):
        entry.of_width(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "shopping list"}, "its kind"),
        ({"device": 3}, "table.device must be a string"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"other_ms": -1}, "other_ms is negative"),
        ({"layers": [{}]}, "lacks the field 'layer'"),
        ({"layers": "none"}, "must be a list"),
    ],
)
def test_a_broken_table_is_refused_by_its_fault(tmp_path, change, message):
    save_latency_table(TABLE, tmp_path / "t.json")
    value = json.loads((tmp_path / "t.json").read_text()) | change
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(ConfigurationError, match=message):
        load_latency_table(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 7}, "layer must be a string"),
        ({"rows": 0}, "must be positive"),
        ({"activation_bits": 4}, "4 activation bits"),
        ({"row_ms": {"5": 1.0}}, "the width '5'"),
        ({"row_ms": {}}, "widths"),
        ({"row_ms": {"4": "slow"}}, "must be a number"),
        ({"fixed_ms": -0.5}, "a time is negative"),
    ],
)
def test_a_broken_entry_is_refused_by_its_fault(tmp_path, change, message):
    save_latency_table(TABLE, tmp_path / "t.json")
    value = json.loads((tmp_path / "t.json").read_text())
    value["layers"][0] |= change
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(ConfigurationError, match=message):
        load_latency_table(tmp_path / "t.json")


def test_two_entries_for_one_layer_are_refused():
    with pytest.raises(ConfigurationError, match="a twice"):
        LatencyTable("a board", 0.0, (TABLE.layers[0], TABLE.layers[0]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.json cannot be read"):
        load_latency_table(tmp_path / "nowhere.json")
