"""Weights that are fetched give the same results as weights that are held, byte for byte."""

import pytest
import torch
from tiny_model import tiny_folder, tiny_observation

from qvla_ros.models import weight_source
from qvla_ros.models.registry import load_model, open_model
from qvla_ros.quantize import kept_states
from qvla_ros.quantize.bit_plan import BitBudget
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.pipeline import (
    calibrate,
    measure_model,
    plan_bits,
    quantize_model,
    write_quantized,
)
from qvla_ros.quantize.sensitivity import MeasureSettings

LOW = BitBudget(average_bits_per_weight=2.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("streaming") / "tiny")


def table_and_bytes(model, path, journal=None):
    frames = calibrate(model, [tiny_observation(seed) for seed in range(5)], 5)
    table = measure_model(model, frames, settings=MeasureSettings(probes=2))
    plan = plan_bits(model, table, LOW)
    quantized = quantize_model(model, plan, frames, journal=journal)
    return table, write_quantized(model, quantized, plan.budget, path).path.read_bytes()


@pytest.fixture(scope="module")
def resident(folder, tmp_path_factory):
    return table_and_bytes(load_model(folder), tmp_path_factory.mktemp("resident") / "c")


@pytest.mark.parametrize("held", [weight_source.HELD_BYTES, 20_000, 0])
def test_a_fetching_network_gives_the_same_table_and_the_same_file(
    folder, resident, tmp_path, monkeypatch, held
):
    monkeypatch.setattr(weight_source.WeightCache.__init__, "__defaults__", (held,))
    table, data = table_and_bytes(open_model(folder), tmp_path / "c")
    for name, scores in resident[0].scores.items():
        assert table.scores[name].equal(scores), name
        assert table.token_weights[name].equal(resident[0].token_weights[name])
    assert data == resident[1]


def test_states_in_files_give_the_same_table(folder, resident, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_states.KeptStates.__init__, "__defaults__", (None, 10_000))
    model = open_model(folder)
    frames = calibrate(model, [tiny_observation(seed) for seed in range(5)], 5)
    seen = []

    def look(evidence):
        seen.extend((tmp_path / "j").glob("states-*/*"))

    table = measure_model(
        model,
        frames,
        settings=MeasureSettings(probes=2),
        journal=Journal(tmp_path / "j", {}),
        on_layer=look,
    )
    assert all(table.scores[name].equal(scores) for name, scores in resident[0].scores.items())
    assert seen
    assert not list((tmp_path / "j").glob("states-*"))


def test_a_fetching_network_goes_on_from_the_parts_of_a_loaded_one(folder, resident, tmp_path):
    class InterruptionError(Exception):
        pass

    def stop(done, total):
        if done == 6:
            raise InterruptionError

    model = load_model(folder)
    frames = calibrate(model, [tiny_observation(seed) for seed in range(5)], 5)
    plan = plan_bits(model, resident[0], LOW)
    with pytest.raises(InterruptionError):
        quantize_model(model, plan, frames, stop, Journal(tmp_path / "j", {}))
    opened = open_model(folder)
    quantized = quantize_model(opened, plan, frames, journal=Journal(tmp_path / "j", {}))
    written = write_quantized(opened, quantized, plan.budget, tmp_path / "c")
    assert written.path.read_bytes() == resident[1]


def test_few_tokens_correct_the_drift_as_many_do():
    """The two roads to the same sums: products of columns, or the tokens themselves."""
    from qvla_ros.quantize.compensation import Compensator
    from qvla_ros.quantize.drift import Drift

    torch.manual_seed(0)
    weight = torch.randn(20, 48)
    kept = torch.arange(0, 48, 2, dtype=torch.int32)
    exact, inputs = torch.randn(2, 30, 48)
    tokens = torch.rand(30)
    answers = []
    for count in (30, 1000):
        drift = Drift(weight, kept, count)
        drift.add(exact[:11], inputs[:11], tokens[:11])
        drift.add(exact[11:], inputs[11:], tokens[11:])
        answers.append(drift.correction(Compensator(drift.moment)))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)
    seen = inputs[:, ::2].double()
    moment = (seen * tokens.double()[:, None]).T @ seen
    moment += 0.01 * moment.diagonal().mean() * torch.eye(24)
    cross = (exact - inputs).double().T @ (seen * tokens.double()[:, None])
    expected = weight.double() @ cross @ torch.linalg.inv(moment)
    torch.testing.assert_close(answers[1].double(), expected, rtol=1e-3, atol=1e-4)
