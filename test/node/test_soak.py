"""A short soak, and that it would see what it looks for."""

import pytest

from demo.node_evidence.simulated_soak import soak
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.chunk_strategy import Accepted


def test_faults_of_every_kind_let_no_unsafe_chunk_through() -> None:
    result = soak(4000)
    assert result.fault_count >= 4000
    assert result.unsafe == {}
    assert result.chunks > 300
    kinds = {"drop", "duplicate", "reorder", "delay", "pause", "bad_encoding", "bad_size"}
    kinds |= {"not_finite", "stamp_jump", "clock_jump", "policy_nan", "policy_beyond_limits"}
    assert kinds | {"policy_slow", "policy_error", "policy_hang"} <= set(result.faults)


def test_it_sees_chunks_beyond_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkScheduler, "_violation", lambda self, chunk: "")
    assert soak(3000).unsafe["out_of_limits"] > 0


def test_it_sees_chunks_and_actions_past_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    later = lambda self, chunk: chunk.ends_at_ns + 10**9  # noqa: E731
    monkeypatch.setattr(ChunkScheduler, "valid_until_ns", later)
    monkeypatch.setattr(Accepted, "row", lambda self, now_ns: self.chunk.actions[-1])
    unsafe = soak(3000).unsafe
    assert unsafe["stale"] > 0
    assert "revoked" not in unsafe
