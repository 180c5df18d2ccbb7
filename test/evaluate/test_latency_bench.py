"""The table that budgets in milliseconds are made of."""

import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.evaluate.latency_bench import measure_latency_table
from qvla_ros.models.registry import load_model
from qvla_ros.quantize.latency_table import load_latency_table, save_latency_table
from qvla_ros.quantize.widths import WIDTHS


def test_every_layer_has_a_time_at_every_width_and_the_file_can_be_read_back(tmp_path):
    model = load_model(tiny_folder(tmp_path / "tiny"))
    frame = model.processing.prepare(tiny_observation())
    with torch.inference_mode():
        before = model.network(frame)
    table = measure_latency_table(model.network, frame, "this machine", repeats=2)
    for layer in model.network.linear_layers():
        for bits in (16, 8):
            entry = table.of(layer, bits)
            assert set(entry.row_ms) == set(WIDTHS[1:])
    assert table.other_ms > 0
    save_latency_table(table, tmp_path / "table.json")
    assert load_latency_table(tmp_path / "table.json") == table
    with torch.inference_mode():
        assert model.network(frame).equal(before)  # nothing of the measurement stays behind
