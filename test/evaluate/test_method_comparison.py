"""The statistics of the comparison, and cells that survive an interruption."""

import json

import numpy as np
import pytest

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bootstrap import Blocks, mean_interval
from qvla_ros.evaluate.comparison_report import plot_errors
from qvla_ros.evaluate.method_cell import MethodCell, read_cell
from qvla_ros.evaluate.method_comparison import cell_keys
from qvla_ros.evaluate.method_summary import judge, rivals_not_beaten, success_rates, table_text
from qvla_ros.evaluate.rollout_record import RolloutRecord


def cell(method: str, bits: float, errors, sha: str = "0" * 64) -> MethodCell:
    values = tuple(float(value) for value in errors)
    return MethodCell(
        method, bits, 1000 * int(bits), file_bytes=999 * int(bits), frame_errors=values,
        mean_l1=float(np.mean(values)), checkpoint_sha256=sha,
    )  # fmt: skip


def test_the_interval_covers_the_mean_and_repeats_by_its_seed():
    values = np.random.default_rng(0).normal(1.0, 0.1, 60)
    episodes = [Blocks(30, 5), Blocks(30, 5)]
    first, again, other = (mean_interval(values, episodes, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(values.mean())


def test_frames_that_are_alike_make_the_interval_wider():
    """Twenty copies of three values are three samples, not sixty."""
    values = np.repeat([0.0, 1.0, 2.0], 20)
    single = mean_interval(values, [Blocks(60, 1)])
    blocks = mean_interval(values, [Blocks(60, 20)])
    assert blocks.high - blocks.low > 2 * (single.high - single.low)


def test_the_interval_has_the_width_that_theory_gives_for_independent_frames():
    values = np.random.default_rng(1).normal(0.0, 1.0, 400)
    found = mean_interval(values, [Blocks(400, 1)])
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(expected, rel=0.05)


def test_a_block_longer_than_its_episode_is_the_whole_episode():
    values = np.array([1.0, 2.0, 3.0])
    found = mean_interval(values, [Blocks(3, 20)])
    assert found.low == found.high == found.mean == 2.0


def test_every_drawn_frame_is_of_its_episode():
    drawn = Blocks(7, 3).draw(np.random.default_rng(0), 500)
    assert drawn.shape == (500, 7)
    assert set(np.unique(drawn)) == set(range(7))


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match="3 values"):
        mean_interval(np.zeros(3), [Blocks(4, 1)])


def test_pairing_sees_a_small_difference_that_hard_frames_would_hide():
    hard = np.abs(np.random.default_rng(2).normal(0.0, 1.0, 60))
    cells = [cell("ours", 3.0, hard), cell("rtn", 3.0, hard + 0.01)]
    ours, rtn = judge(cells, [Blocks(60, 5)], seed=0)
    assert ours.error.high > rtn.error.low  # apart, the two are not told from each other
    assert rtn.ours_is_better
    assert rtn.against_ours.mean == pytest.approx(0.01)
    assert ours.against_ours is None


def test_a_rival_that_is_not_beaten_is_named():
    rng = np.random.default_rng(3)
    base = rng.uniform(0.1, 0.2, 40)
    cells = [
        cell("ours", 3.0, base),
        cell("gptq", 3.0, base - 0.01),
        cell("awq", 3.0, base + 0.01),
        cell("gptq", 8.0, base),
        cell("ours", 8.0, base),
        cell("ours-greedy", 3.0, base),
    ]
    judged = judge(cells, [Blocks(40, 4)], seed=0)
    assert rivals_not_beaten(judged, 4.0) == ["gptq at 3 bits"]
    text = table_text(judged)
    assert "!" in next(line for line in text.splitlines() if line.startswith("gptq"))
    assert "*" in next(line for line in text.splitlines() if line.startswith("awq"))


def test_a_budget_that_a_method_cannot_meet_stands_in_the_table():
    cells = [cell("ours", 2.0, [0.1, 0.2]), MethodCell("awq", 2.0, 2000, unmet="too small")]
    judged = judge(cells, [Blocks(2, 1)], seed=0)
    assert "no fit" in table_text(judged)
    assert judged[1].to_json()["error"] is None
    assert json.dumps([one.to_json() for one in judged])


def test_a_cell_survives_its_file(tmp_path):
    before = cell("rtn", 3.5, [0.25, 0.5])
    before.write(tmp_path / "cell.json")
    assert read_cell(tmp_path / "cell.json") == before
    text = (tmp_path / "cell.json").read_text()
    (tmp_path / "cell.json").write_text(text[: len(text) // 2])
    with pytest.raises(ConfigurationError, match="remove it"):
        read_cell(tmp_path / "cell.json")


def test_the_reference_has_one_cell_and_ablations_have_some_budgets():
    keys = cell_keys(["bf16", "rtn", "ours-a8"], [4.0, 3.5, 3.0], [3.0])
    assert [key.stem for key in keys] == ["bf16@16", "rtn@4", "rtn@3.5", "rtn@3", "ours-a8@3"]


def record(digest: str, state: int, success: bool) -> RolloutRecord:
    return RolloutRecord("suite", 0, state, success, 10, "0" * 64, digest, "tag", "3.3.2")


def test_closed_loop_success_is_found_by_the_checkpoints_digest():
    cells = [cell("ours", 3.0, [0.1, 0.2], "a" * 64), cell("rtn", 3.0, [0.2, 0.3], "b" * 64)]
    rates = success_rates({"file": [record("a" * 64, 0, True), record("a" * 64, 1, False)]}, cells)
    judged = judge(cells, [Blocks(2, 1)], 0, rates)
    assert judged[0].success.rate == 0.5
    assert judged[1].success is None
    assert len(plot_errors(judged).axes) == 2
    with pytest.raises(ConfigurationError, match="stranger"):
        success_rates({"stranger": [record("c" * 64, 0, True)]}, cells)
