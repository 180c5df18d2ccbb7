"""Synthetic episodes through THE scheduler; the policy of these tests knows the truth."""

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import Episode, Observations, RecordedActions
from qvla_ros.evaluate.replay import ReplaySettings, replay
from qvla_ros.evaluate.replay_result import summarize
from qvla_ros.observation import Observation
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.policy.inference import Inference
from qvla_ros.policy.schedule import SchedulerSettings

MS = 1_000_000
PERIOD = 50 * MS
START = 1_700_000_000_000_000_000
NAMES = ("dx", "dy", "gripper")
HORIZON = 8


def true_actions(first: int, count: int) -> np.ndarray:
    """The recorded action of step ``i`` is (i / 100, -i / 100, 1), in robot units."""
    steps = np.arange(first, first + count, dtype=np.float32)
    return np.stack([steps / 100, -steps / 100, np.ones(count, np.float32)], axis=1)


class HalfScale:
    """Robot units of the first two dimensions reach from -2 to 2."""

    settings = SimpleNamespace(
        robot=SimpleNamespace(action_names=NAMES), action_low=[-2, -2, 0], action_high=[2, 2, 1]
    )

    def normalized_actions(self, actions: np.ndarray) -> np.ndarray:
        return (actions * np.array([0.5, 0.5, 1.0])).astype(np.float32)


class Oracle:
    """Answers the truth plus ``bias``, from the step that the state tells."""

    horizon = HORIZON
    period_ns = PERIOD
    action_names = NAMES
    processing = HalfScale()

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias
        self.seen: list[int] = []

    def memory_bytes(self) -> dict[str, int]:
        return {}

    def infer(self, observation: Observation) -> Inference:
        step = int(observation.state[0])
        self.seen.append(step)
        actions = true_actions(step, HORIZON)
        actions[:, :2] += np.float32(self.bias)
        return Inference(ActionChunk(observation.stamp_ns, PERIOD, actions), {"model": 1.5})


class Failing(Oracle):
    """Cannot answer the steps that the test lists."""

    def __init__(self, steps: set[int], poison: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.poison = poison

    def infer(self, observation: Observation) -> Inference:
        inference = super().infer(observation)
        if int(observation.state[0]) in self.steps:
            if not self.poison:
                raise ValueError("no answer")
            inference.chunk.actions[0, 0] = np.nan
        return inference


def episode(steps: int = 40, actions: bool = True, new_task_at: int | None = None) -> Episode:
    observations = [
        Observation(
            START + step * PERIOD,
            {},
            np.array([step], np.float32),
            "second" if new_task_at is not None and step >= new_task_at else "first",
        )
        for step in range(steps)
    ]
    recorded = true_actions(0, steps) if actions else None
    whole = Episode.in_step(observations, recorded, {"name": "synthetic"})
    revoked = () if new_task_at is None else (START + new_task_at * PERIOD,)
    return replace(whole, revoked_ns=revoked)


def settings(latency_ms: float | None = 120, ttl_ms: int = 400, age_ms: int = 200):
    return ReplaySettings(
        SchedulerSettings(ttl_ms * MS, age_ms * MS),
        latency_ns=None if latency_ms is None else round(latency_ms * MS),
        warmup_count=0,
    )


def test_a_perfect_policy_has_no_error_whatever_the_latency():
    for latency_ms in (0, 30, 120, 160):
        result = replay(Oracle(), episode(), settings(latency_ms))
        assert result.recorded_error is not None
        assert result.recorded_error.mean_l1 == pytest.approx(0, abs=1e-7)
        np.testing.assert_allclose(
            result.traces.executed[10:], result.traces.recorded[10:], atol=1e-6
        )
        assert result.seams.maximum == pytest.approx(0, abs=1e-6)


def test_without_latency_every_observation_is_answered_and_only_first_steps_are_executed():
    result = replay(Oracle(), episode(), settings(0))
    assert (result.inferences, result.chunks) == (40, 40)
    assert result.executed_steps == (40, 0, 0, 0, 0, 0, 0, 0)
    assert (result.holds, result.drops, result.deadline_misses) == ({}, {}, 0)


def test_latency_decides_which_observations_are_answered_and_the_rest_is_counted():
    policy = Oracle()
    result = replay(policy, episode(steps=12), settings(latency_ms=120))
    # Observation 0 is under way until 120 ms; then 2 is the newest (100 ms), until 240 ms; then 4
    # (200 ms), until 360 ms; then 7 (350 ms), until 480 ms; then 9 (450 ms), until after the end.
    assert policy.seen == [0, 2, 4, 7, 9]
    assert result.drops == {"superseded": 6}
    assert result.chunks == 4
    assert result.holds == {"no_chunk": 3}
    # Steps due at 150 to 550 ms: chunk 0 gives 3, 4; 2 gives 3, 4, 5; 4 gives 4, 5; 7 gives 3, 4.
    assert result.executed_steps == (0, 0, 0, 3, 4, 2, 0, 0)


def test_a_constant_bias_is_found_in_normalised_units_and_by_dimension():
    result = replay(Oracle(bias=0.2), episode(), settings())
    error = result.recorded_error
    assert error is not None
    np.testing.assert_allclose(error.l1_by_dimension, [0.1, 0.1, 0.0], atol=1e-6)
    assert error.executed_l1 == pytest.approx(0.2 / 3, abs=1e-6)
    drift = result.traces.drift(result.traces.recorded)
    assert all(value == pytest.approx(0.2 / 3, abs=1e-6) for _, value in drift)
    assert [time for time, _ in drift] == [0.0, 1.0]


def test_what_lies_behind_the_end_of_the_recording_is_not_compared():
    result = replay(Oracle(), episode(steps=10), settings(0))
    assert result.recorded_error is not None
    assert result.recorded_error.steps == sum(min(HORIZON, 10 - step) for step in range(10))


def test_the_reference_answers_the_same_observations_and_its_difference_is_told():
    policy, reference = Oracle(bias=0.3), Oracle(bias=0.1)
    result = replay(policy, episode(), settings(), reference)
    assert reference.seen == policy.seen
    assert result.reference_error is not None
    np.testing.assert_allclose(result.reference_error.l1_by_dimension, [0.1, 0.1, 0.0], atol=1e-6)
    assert result.traces.reference is not None
    held = np.isnan(result.traces.executed)
    np.testing.assert_array_equal(np.isnan(result.traces.reference), held)
    for _, value in result.traces.drift(result.traces.reference):
        assert value == pytest.approx(0.2 / 3, abs=1e-6)


def test_a_short_time_to_live_leaves_holds_and_deadline_misses():
    result = replay(Oracle(), episode(), settings(latency_ms=120, ttl_ms=200))
    assert result.holds["no_chunk"] == 3
    assert result.holds["expired"] > 0
    assert result.deadline_misses > 0


def test_inference_slower_than_the_time_to_live_gives_no_action_at_all():
    result = replay(Oracle(), episode(), settings(latency_ms=450))
    assert result.chunks == 0
    assert result.drops["expired"] == result.inferences - 1
    assert result.holds == {"no_chunk": 40}
    assert np.isnan(result.traces.executed).all()
    assert result.recorded_error is not None
    json.dumps(result.to_json(), allow_nan=False)


def test_a_failed_inference_is_dropped_and_the_episode_goes_on():
    result = replay(Failing({5, 6}), episode(), settings(0))
    assert result.drops == {"inference_failed": 2}
    assert result.inferences == 38


def test_a_chunk_that_is_not_finite_reaches_no_action_and_no_error():
    result = replay(Failing({5}, poison=True), episode(), settings(0), Oracle())
    assert result.drops == {"non_finite": 1}
    assert np.isfinite(result.traces.executed).all()
    for error in (result.recorded_error, result.reference_error):
        assert error is not None
        assert error.mean_l1 == pytest.approx(0, abs=1e-7)


def test_a_new_instruction_flushes_what_was_planned_for_the_old_one():
    result = replay(Oracle(), episode(new_task_at=20), settings(latency_ms=120))
    # At 1000 ms, the change, observation 19 is under way until 1080 ms; the next answer, to
    # observation 21, is ready at 1200 ms.
    assert result.holds == {"no_chunk": 3, "instruction_changed": 4}
    assert result.drops["flushed"] == 1


def test_it_is_deterministic_with_a_fixed_latency():
    first, second = (replay(Oracle(0.1), episode(), settings()).to_json() for _ in range(2))
    for one in (first, second):
        one.pop("latency_ms")
    assert first == second


def test_the_measured_latency_is_reported_and_may_drive_the_clock():
    result = replay(Oracle(), episode(), settings(latency_ms=None, ttl_ms=400))
    assert set(result.stages) == {"model", "total", "wall"}
    assert result.stages["wall"].count == result.inferences == len(result.latency_ms)
    assert result.stages["model"].p50 == 1.5


def test_the_warm_up_is_in_no_figure():
    policy = Oracle()
    warm = replace(settings(0), warmup_count=3)
    result = replay(policy, episode(steps=5), warm)
    assert policy.seen == [0, 0, 0, 0, 1, 2, 3, 4]
    assert result.inferences == 5


def test_a_bag_without_actions_is_replayed_without_an_error():
    result = replay(Oracle(), episode(actions=False), settings())
    assert result.recorded_error is None
    assert result.traces.drift(result.traces.recorded) == ()
    assert result.chunks > 0


def test_a_gap_in_the_recording_moves_no_action_to_another_step():
    whole = episode(steps=20)
    kept = [step for step in range(20) if step not in (6, 7, 8)]
    assert whole.actions is not None
    observations = [whole.observations[step] for step in kept]
    gappy = Episode.in_step(observations, whole.actions.values[kept])
    result = replay(Oracle(), gappy, settings(0))
    assert result.recorded_error is not None
    assert result.recorded_error.mean_l1 == pytest.approx(0, abs=1e-7)


def test_recorded_actions_may_come_at_their_own_rate_and_instants():
    at_30_hz = START + np.arange(60, dtype=np.int64) * 33 * MS + 7 * MS
    steps = ((at_30_hz - START) / PERIOD)[:, None]
    values = np.concatenate([steps / 100, -steps / 100, np.ones_like(steps)], axis=1)
    recorded = RecordedActions(at_30_hz, values.astype(np.float32))
    result = replay(Oracle(), replace(episode(), actions=recorded), settings(0))
    assert result.recorded_error is not None
    assert 0 < result.recorded_error.mean_l1 < 0.01 * 0.5


def test_the_pace_of_the_node_decides_which_images_are_asked_about():
    policy = Oracle()
    paced = replace(settings(0), request_interval_ns=int(187.5 * MS))
    result = replay(policy, episode(steps=20), paced)
    assert policy.seen == [0, 4, 8, 12, 16]
    assert result.executed_steps == (5, 5, 5, 5, 0, 0, 0, 0)
    assert result.drops == {}


def test_another_instruction_asks_at_once():
    policy = Oracle()
    paced = replace(settings(0), request_interval_ns=int(187.5 * MS))
    replay(policy, episode(steps=12, new_task_at=6), paced)
    assert policy.seen == [0, 4, 6, 10]


def test_what_cannot_be_decoded_is_counted_and_the_next_one_is_used():
    whole = episode(steps=10)

    def broken() -> Observation:
        raise CalibrationError("no image")

    makers = [lambda step=step: whole.observations[step] for step in range(10)]
    makers[0] = makers[5] = broken
    policy = Oracle()
    paced = replace(settings(0), request_interval_ns=int(187.5 * MS))
    result = replay(policy, replace(whole, observations=Observations(makers)), paced)
    assert policy.seen == [1, 6]
    assert result.drops == {"bad_message": 2}
    unusable = replace(whole, observations=Observations([broken] * 10))
    with pytest.raises(CalibrationError, match="no image"):
        replay(policy, unusable, paced)


def test_what_the_bag_lost_is_among_the_drops():
    lossy = replace(episode(10), drops={"out_of_step_camera_wrist": 3})
    assert replay(Oracle(), lossy, settings(0)).drops == {"out_of_step_camera_wrist": 3}


def test_an_observation_that_was_ready_too_late_is_stale():
    whole = episode(steps=10)
    late = replace(whole, ready_ns=whole.ready_ns + 201 * MS)
    result = replay(Oracle(), late, settings(0, age_ms=200))
    assert result.drops == {"stale_observation": 10}
    assert result.holds == {"no_chunk": 10}


def limited(upper: Sequence[float]) -> ReplaySettings:
    limits = ActionLimits(
        NAMES, np.full(3, -9, np.float32), np.array(upper, np.float32), np.full(3, 9, np.float32)
    )
    given = settings(0)
    scheduler = replace(given.scheduler, limits=limits)
    return replace(given, scheduler=scheduler, failure_limit=1000)


def test_limits_refuse_chunks_as_on_the_robot_and_each_limit_is_counted():
    clean = replay(Oracle(), episode(), limited([9, 9, 9]))
    assert (clean.trips, clean.drops) == ({}, {})
    # The chunk of step 13 reaches 0.20 with its last action.
    result = replay(Oracle(), episode(), limited([0.195, 9, 9]))
    assert result.trips == {"dx.upper": 27}
    assert result.drops == {"out_of_limits": 27}
    assert result.holds["exhausted"] > 0
    assert summarize([result, result]).trips == {"dx.upper": 54}


@pytest.mark.parametrize("poison", [False, True])
def test_failures_in_a_row_stop_the_robot_for_good_as_the_node_does(poison):
    policy = Failing({3, 4, 10, 11, 12}, poison)
    limited = replace(settings(0), failure_limit=3)
    result = replay(policy, episode(), limited)
    assert policy.seen == list(range(13))
    assert result.fault is not None
    assert result.fault.startswith("3 inferences failed in a row")
    assert result.holds == {"faulted": 28}
    assert summarize([result]).faults == {"synthetic": result.fault}


def test_progress_counts_over_both_policies():
    calls: list[tuple[int, int]] = []
    replay(
        Oracle(), episode(6), settings(0), Oracle(), lambda done, all_: calls.append((done, all_))
    )
    assert calls == [(done, 12) for done in range(1, 13)]


def test_actions_of_another_size_are_refused_by_name():
    wrong = Episode.in_step(episode(4).observations, np.zeros((4, 2), np.float32))
    with pytest.raises(CalibrationError, match=r"2 dimensions.*3.*dx, dy, gripper"):
        replay(Oracle(), wrong, settings())


def test_an_empty_episode_is_refused():
    with pytest.raises(CalibrationError, match="no observation"):
        replay(Oracle(), Episode.in_step([]), settings())


def test_a_summary_weighs_every_sample_alike():
    short = replay(Oracle(bias=0.2), episode(10), settings(0))
    long = replay(Oracle(bias=0.0), episode(40), settings(0))
    summary = summarize([short, long])
    assert short.recorded_error is not None
    assert long.recorded_error is not None
    assert summary.recorded_error is not None
    steps = (short.recorded_error.steps, long.recorded_error.steps)
    expected = short.recorded_error.mean_l1 * steps[0] / sum(steps)
    assert summary.recorded_error.mean_l1 == pytest.approx(expected, rel=1e-5)
    assert (summary.episodes, summary.steps, summary.inferences) == (2, 50, 50)
    assert summary.reference_error is None
    json.dumps(summary.to_json(), allow_nan=False)
