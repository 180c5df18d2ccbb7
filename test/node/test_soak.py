"""A short soak, and that it would see what it looks for."""

import dataclasses

import pytest

from demo.node_evidence.simulated_soak import soak
from qvla_ros.node.parameters import STRATEGIES
from qvla_ros.policy import chunk_plan, chunk_scheduler
from qvla_ros.policy.chunk_plan import make_plan
from qvla_ros.policy.schedule import SchedulerSettings


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_faults_of_every_kind_let_no_unsafe_chunk_through(strategy: str) -> None:
    result = soak(4000, strategy)
    assert result.fault_count >= 4000
    assert result.unsafe == {}
    assert result.chunks > 300
    assert result.refused["non_finite"] > 0
    beyond = result.faults["policy_beyond_limits"]
    assert result.refused["out_of_limits"] > 2 * beyond, "the limit of steps binds as well"
    kinds = {"drop", "duplicate", "reorder", "delay", "pause", "bad_encoding", "bad_size"}
    kinds |= {"not_finite", "stamp_jump", "clock_jump", "policy_nan", "policy_beyond_limits"}
    assert kinds | {"policy_slow", "policy_error", "policy_hang"} <= set(result.faults)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_sees_chunks_that_are_beyond_their_limits_only_as_they_are_sent(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(chunks, strategy, settings, followed):  # judges what the policy said
        found = make_plan(chunks, strategy, settings, followed)
        said = settings.limits.violation(chunks[-1].chunk.actions)
        return dataclasses.replace(found, violation=said or "")

    monkeypatch.setattr(chunk_scheduler, "make_plan", plan)
    assert soak(3000, strategy).unsafe["out_of_limits"] > 0


def test_it_sees_chunks_and_actions_past_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    later = lambda self, chunk: chunk.ends_at_ns + 10**9  # noqa: E731
    monkeypatch.setattr(SchedulerSettings, "valid_until_ns", later)
    monkeypatch.setattr(chunk_plan, "action_index", lambda chunk, now_ns: 0)
    unsafe = soak(3000).unsafe
    assert unsafe["stale"] > 0
    assert "revoked" not in unsafe
