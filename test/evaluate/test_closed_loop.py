"""Closed loop: records, plans, and what is executed of a chunk.

The tests that run a simulation need LIBERO and are skipped, with the reason, without it.
"""

import json
import operator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from interrupted import run_or_die

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate import closed_loop
from qvla_ros.evaluate.closed_loop import PolicySource, run_episode
from qvla_ros.evaluate.libero import CONTROL_PERIOD_NS
from qvla_ros.evaluate.rollout_record import (
    RolloutRecord,
    RosFacts,
    check_same_run,
    compare_paired,
    parse_record,
    rates_by_task,
    read_records,
    write_records,
)
from qvla_ros.evaluate.success_statistics import SuccessRate
from qvla_ros.observation import Observation


def record(state: int = 0, success: bool = True, task: int = 0, **changes) -> RolloutRecord:
    plain = RolloutRecord(
        suite="libero_spatial",
        task=task,
        initial_state=state,
        success=success,
        steps=88,
        actions_sha256="aa" * 32,
        policy_sha256="bb" * 32,
        quant_tag="float32",
        mujoco="3.3.2",
    )
    return replace(plain, **changes)


def line(**changes) -> str:
    return json.dumps({**asdict(record()), **changes})


def test_records_are_read_as_they_were_written(tmp_path):
    records = [record(state, success=state % 2 == 0) for state in range(5)]
    write_records(tmp_path / "out" / "a.jsonl", records)
    assert read_records(tmp_path / "out" / "a.jsonl") == records
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a.jsonl"]


def test_a_compressed_file_holds_the_same_records_and_a_damaged_one_is_named(tmp_path):
    records = [record(state, steps=60 + state) for state in range(50)]
    write_records(tmp_path / "a.jsonl.xz", records)
    write_records(tmp_path / "a.jsonl", records)
    assert read_records(tmp_path / "a.jsonl.xz") == records
    sizes = [(tmp_path / name).stat().st_size for name in ("a.jsonl.xz", "a.jsonl")]
    assert sizes[0] < sizes[1] / 5
    (tmp_path / "a.jsonl.xz").write_bytes(b"no archive")
    with pytest.raises(ConfigurationError, match=r"a\.jsonl\.xz is damaged"):
        read_records(tmp_path / "a.jsonl.xz")


def test_what_the_messages_of_an_episode_tell_is_read_as_strictly(tmp_path):
    facts = RosFacts(0.5, 4, 15, (150.0, 250.0, 300.0), 2, 1, {"stale_observation": 1}, 0)
    through_ros = record(7, ros=facts)
    write_records(tmp_path / "a.jsonl", [through_ros, record(8)])
    assert read_records(tmp_path / "a.jsonl") == [through_ros, record(8)]
    assert "ros" not in json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    for change in (
        {"chunks": 1.5},
        {"drops": {"late": "1"}},
        {"chunk_age_ms": [1.0]},
        {"more": 0},
    ):
        values = asdict(through_ros)
        values["ros"] |= change
        with pytest.raises(ValueError, match=r"is no|hold|three numbers|its fields"):
            parse_record(json.dumps(values))


def test_the_digest_is_of_what_the_simulator_executes():
    from qvla_ros.evaluate.libero import actions_digest

    actions = np.array([[0.5, 0, 0, 0, 0, 0, 0.98], [2.0, 0, 0, 0, 0, 0, 0.1]], np.float32)
    same = np.array([[0.5, 0, 0, 0, 0, 0, 1.02], [1.0, 0, 0, 0, 0, 0, -0.3]], np.float32)
    assert actions_digest(actions) == actions_digest(same)
    assert actions_digest(actions) != actions_digest(same[::-1])


def test_records_alone_are_told_and_compared_without_a_policy(tmp_path, capsys):
    from qvla_ros.cli.main import main

    write_records(tmp_path / "a.jsonl", [record(0), record(1, False)])
    write_records(tmp_path / "b.jsonl.xz", [record(0), record(1)])
    words = ["rollout", "--out", str(tmp_path / "a.jsonl")]
    assert main([*words, "--against", str(tmp_path / "b.jsonl.xz")]) == 0
    assert "2 pairs: both 1, only this 0, only the other 1" in capsys.readouterr().out
    assert main(["rollout", "--out", str(tmp_path / "none.jsonl")]) != 0


def test_a_file_that_does_not_exist_yet_holds_no_records(tmp_path):
    assert read_records(tmp_path / "new.jsonl") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "line 2: Expecting property"),
        ("[]", "line 2: it is not a JSON object"),
        (line(steps="88"), "line 2: 'steps' is '88'"),
        (line(success=1), "line 2: 'success' is 1"),
        (line(task=True), "line 2: 'task' is True"),
        (line(extra=0), "line 2: its fields are"),
        (json.dumps({"suite": "libero_spatial"}), "line 2: its fields are"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(tmp_path, text, complaint):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line(initial_state=9)}\n{text}\n")
    with pytest.raises(ConfigurationError, match=rf"a\.jsonl, {complaint}"):
        read_records(path)


def test_a_repeated_episode_is_refused_since_it_is_not_another_sample(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n{line(initial_state=1)}\n{line(success=False)}\n")
    with pytest.raises(ConfigurationError, match=r"line 3: .*initial state 0 stands in line 1"):
        read_records(path)


def test_a_file_that_mixes_two_policies_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n{line(initial_state=1, policy_sha256='cc' * 32)}\n")
    with pytest.raises(ConfigurationError, match="write to another file"):
        read_records(path)


def test_another_policy_or_simulator_cannot_go_on_in_a_file(tmp_path):
    records = [record()]
    tag = records[0].quant_tag
    check_same_run(tmp_path, records, "bb" * 32, tag, "3.3.2")
    with pytest.raises(ConfigurationError, match="this is policy cccccccccccc"):
        check_same_run(tmp_path, records, "cc" * 32, tag, "3.3.2")
    with pytest.raises(ConfigurationError, match=r"on MuJoCo 3\.4\.0"):
        check_same_run(tmp_path, records, "bb" * 32, tag, "3.4.0")
    with pytest.raises(ConfigurationError, match="images mirror"):
        check_same_run(tmp_path, records, "bb" * 32, f"{tag}, images mirror", "3.3.2")


def test_a_record_survives_json():
    assert parse_record(json.dumps(asdict(record(7)))) == record(7)


def test_rates_are_counted_task_by_task():
    records = [record(0), record(1, False), record(0, task=2), record(1, task=2)]
    rates = rates_by_task(records)
    assert rates == {
        ("libero_spatial", 0): SuccessRate(1, 2),
        ("libero_spatial", 2): SuccessRate(2, 2),
    }
    assert str(rates["libero_spatial", 2]).startswith("2/2 = 100.0 % (95 % interval 34.2 to 100")


def test_only_common_episodes_are_compared():
    ours = [record(0), record(1), record(2, False), record(3, False), record(8)]
    theirs = [record(0), record(1, False), record(2), record(3, False), record(9)]
    comparison = compare_paired(ours, theirs)
    counts = comparison.both, comparison.only_first, comparison.only_second, comparison.neither
    assert counts == (1, 1, 1, 1)
    assert comparison.pairs == 4
    assert comparison.unpaired == 2
    assert comparison.p_value == 1.0


def test_episodes_without_a_partner_or_of_another_simulator_are_not_compared():
    with pytest.raises(ConfigurationError, match="no episode in common"):
        compare_paired([record(0)], [record(1)])
    with pytest.raises(ConfigurationError, match=r"MuJoCo 3.3.2 and 3.4.0"):
        compare_paired([record(0)], [record(0, mujoco="3.4.0")])


def test_a_plan_lists_each_episode_once():
    from qvla_ros.evaluate.rollout_plan import RolloutPlan

    plan = RolloutPlan("libero_spatial", (0, 2), episodes=2)
    expected = [("libero_spatial", task, state) for task in (0, 2) for state in (0, 1)]
    assert plan.keys == expected
    with pytest.raises(ConfigurationError, match="twice"):
        RolloutPlan("libero_spatial", (0, 0), episodes=2)
    with pytest.raises(ConfigurationError, match="at least one"):
        RolloutPlan("libero_spatial", (), episodes=2)


def test_the_gripper_is_translated_for_the_simulator():
    from qvla_ros.evaluate.libero import to_environment_convention

    opened = to_environment_convention(np.array([0, 0, 2, 0, 0, -2, 1], np.float32))
    np.testing.assert_array_equal(opened, [0, 0, 1, 0, 0, -1, -1])
    closed = to_environment_convention(np.array([0, 0, 0, 0, 0, 0, 0.2], np.float32))
    assert closed[6] == 1


class CountingTask:
    """Ends after ``steps`` actions; no simulator."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def success(self) -> bool:
        return self._left <= 0

    def reset_to_initial_state(self, index: int) -> None:
        self.index = index

    def observe(self, stamp_ns: int) -> Observation:
        images = {"primary": np.zeros((2, 3, 3), np.uint8)}
        return Observation(stamp_ns, images, np.zeros(8, np.float32), "go")

    def step(self, action: np.ndarray) -> None:
        self._left -= 1


class CountingPolicy:
    """Its n-th chunk says n in each of 8 actions."""

    def __init__(self) -> None:
        self.stamps_ns: list[int] = []

    def infer(self, observation: Observation) -> SimpleNamespace:
        self.stamps_ns.append(observation.stamp_ns)
        actions = np.full((8, 7), len(self.stamps_ns), np.float32)
        return SimpleNamespace(chunk=SimpleNamespace(actions=actions))


@pytest.mark.parametrize(
    ("open_loop_steps", "needed", "executed"),
    [
        (0, 11, [1] * 8 + [2] * 3),
        (3, 7, [1, 1, 1, 2, 2, 2, 3]),
        (1, 3, [1, 2, 3]),
        (3, 99, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]),  # 12 steps at most
    ],
)
def test_so_many_actions_of_a_chunk_are_executed_before_the_policy_is_asked_again(
    open_loop_steps, needed, executed
):
    policy = CountingPolicy()
    task = CountingTask(needed)
    success, actions = run_episode(policy, task, 4, 12, open_loop_steps=open_loop_steps)
    assert (success, actions[:, 0].tolist(), task.index) == (needed < 99, executed, 4)
    asked_at = [place for place in range(len(executed)) if executed[place] > [0, *executed][place]]
    assert policy.stamps_ns == [place * CONTROL_PERIOD_NS for place in asked_at]


def test_a_worker_that_dies_is_replaced_and_loses_no_episode(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(closed_loop, "_start_worker", operator.is_)
    monkeypatch.setattr(closed_loop, "_run_in_worker", run_or_die)
    keys = [(str(tmp_path), 0, state) for state in range(6)]
    (tmp_path / "3").write_text("1")
    records = list(closed_loop._run_all(None, 9, keys, workers=1))
    assert sorted(record.key for record in records) == keys
    assert "worker process died; the 3 episodes left" in caplog.text
    (tmp_path / "4").write_text("2")
    with pytest.raises(ConfigurationError, match="before any episode was finished"):
        list(closed_loop._run_all(None, 9, keys, workers=1))


def test_episodes_of_half_chunks_and_of_whole_ones_do_not_mix():
    policy = SimpleNamespace(quant_tag="mixed-3.96bit")
    whole, half = (PolicySource(Path(), open_loop_steps=steps) for steps in (0, 4))
    assert whole.tag(policy) == "mixed-3.96bit"
    assert half.tag(policy) == "mixed-3.96bit, 4 steps of a chunk"


def test_libero_answers_the_same_for_the_same_initial_state():
    pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'qvla_ros[libero]'")
    from qvla_ros.evaluate.libero import LiberoTask

    task = LiberoTask("libero_spatial", 0)
    try:
        seen = []
        for index in (3, 5, 3):  # the third follows an episode in which the arm and gripper moved
            task.reset_to_initial_state(index)
            task.step(np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32))
            seen.append(task.observe(stamp_ns=7))
            for _ in range(8):
                task.step(np.array([0.5, 0.2, -0.5, 0, 0.1, 0, 0], np.float32))
        assert not task.success
    finally:
        task.close()
    first, other, again = seen
    assert first.instruction.startswith("pick up the black bowl")
    assert first.images["primary"].shape == (128, 128, 3)
    assert not np.array_equal(first.state, other.state)
    np.testing.assert_array_equal(first.state, again.state)
    for name in ("primary", "wrist"):
        np.testing.assert_array_equal(first.images[name], again.images[name])


def test_a_control_step_ends_where_that_of_robosuite_does_bit_for_bit():
    pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'qvla_ros[libero]'")
    from qvla_ros.evaluate.libero import LiberoTask, to_environment_convention

    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (30, 7)).astype(np.float32)
    actions[:, 2], actions[:, 6] = -0.6, np.arange(30) < 20  # down onto the table, then close
    task = LiberoTask("libero_spatial", 0)
    ends = []
    try:
        for step in (task.step, lambda a: task.simulation.step(to_environment_convention(a))):
            task.reset_to_initial_state(1)
            for action in actions:
                step(action)
            data = task.simulation.sim.data
            ends.append([np.array(x) for x in (data.qpos, data.qvel, data.qacc, data.sensordata)])
    finally:
        task.close()
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_table_and_the_json_say_rate_interval_simulator_and_pairs():
    from qvla_ros.cli.rollout import table_text, to_json

    records = [record(0), record(1, False), record(0, task=2)]
    rates = rates_by_task(records)
    comparison = compare_paired(records, [record(0), record(1)])
    text = table_text(records, rates, comparison)
    assert "libero_spatial task 0: 1/2 = 50.0 % (95 % interval 9.5 to 90.5 %)" in text
    assert "all: 2/3" in text
    assert "MuJoCo 3.3.2" in text
    assert "only the other 1" in text
    assert "1 episodes were run by one of the two only" in text
    result = json.loads(json.dumps(to_json(records, rates, comparison)))
    assert result["all"]["successes"] == 2
    assert result["against"]["p_value"] == 1.0


def test_the_arguments_of_the_verb_are_understood():
    from qvla_ros.cli.main import build_parser

    arguments = build_parser().parse_args(
        ["rollout", "--tasks", "0,2", "--policy", "a.qvla.safetensors", "--out", "a.jsonl"]
    )
    assert arguments.tasks == (0, 2)
    assert arguments.episodes == 50
