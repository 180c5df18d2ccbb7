"""Whether a serving policy is well, and why not."""

import enum
from dataclasses import dataclass, field

from qvla_ros.policy.stage_times import StagePercentiles

TOTAL_STAGE = "total"
"""Stage name of the sum of all stages of one inference."""


class Verdict(enum.IntEnum):
    """The values are those of ``diagnostic_msgs/DiagnosticStatus.level``."""

    OK = 0
    WARN = 1
    ERROR = 2


class LoopState(str, enum.Enum):
    """What the inference loop is doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    FAULTED = "faulted"


@dataclass(frozen=True, slots=True)
class PolicyHealth:
    """The state of a serving policy at one instant.

    Attributes:
        state: What the inference loop is doing.
        verdict: The worst of what ``reasons`` says.
        reasons: What is wrong, in words; empty if nothing.
        fault: Why the loop faulted, with the traceback; ``None`` if it did not.
        stages: Stage name to percentiles in milliseconds, warm-up left out; ``"total"`` is the
            sum of the policy's stages, ``"stamp_to_chunk"`` runs from the observation's stamp to
            the accepted chunk on the loop's clock.
        chunks: Chunks accepted.
        chunk_age_ns: Age of the current chunk's observation; ``None`` without a chunk.
        drops: Observations and chunks not used, by reason.
        deadline_misses: Chunks that ran out before a successor was accepted.
        memory: Bytes, by kind.
    """

    state: LoopState
    verdict: Verdict
    reasons: tuple[str, ...]
    fault: str | None
    stages: dict[str, StagePercentiles]
    chunks: int
    chunk_age_ns: int | None
    drops: dict[str, int]
    deadline_misses: int
    memory: dict[str, int]


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """What the verdict is made of.

    Attributes:
        state: What the inference loop is doing.
        fault_reason: Why it faulted, one line; ``None`` if it did not.
        total: Percentiles of a whole inference; ``None`` before the first one counted.
        cover_ns: How long a chunk can be executed: the horizon or the time to live, the shorter.
        horizon_ns: ``horizon * period_ns``.
        silence_ns: Time since the last accepted chunk, or since the start before the first.
        silence_limit_ns: Longer silence is an error.
        failures_in_a_row: Inferences that failed since the last good one.
    """

    state: LoopState
    fault_reason: str | None
    total: StagePercentiles | None
    cover_ns: int
    horizon_ns: int
    silence_ns: int
    silence_limit_ns: int
    failures_in_a_row: int


@dataclass(slots=True)
class _Findings:
    verdict: Verdict = Verdict.OK
    reasons: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, reason: str) -> None:
        self.verdict = max(self.verdict, verdict)
        self.reasons.append(reason)


def assess(facts: HealthFacts) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on ``facts``, and what is wrong in words."""
    findings = _Findings()
    if facts.fault_reason is not None:
        findings.add(Verdict.ERROR, f"faulted: {facts.fault_reason}")
    if facts.total is not None:
        _check_speed(facts, facts.total, findings)
    if facts.state is LoopState.RUNNING:
        _check_silence(facts, findings)
    if facts.failures_in_a_row > 0:
        findings.add(Verdict.WARN, f"{facts.failures_in_a_row} inferences failed in a row")
    return findings.verdict, tuple(findings.reasons)


def _check_speed(facts: HealthFacts, total: StagePercentiles, findings: _Findings) -> None:
    horizon_ms, cover_ms = facts.horizon_ns / 1e6, facts.cover_ns / 1e6
    if total.p95 >= horizon_ms:
        findings.add(
            Verdict.ERROR,
            f"inference p95 {total.p95:.0f} ms reaches the chunk's horizon {horizon_ms:.0f} ms",
        )
    elif 2 * total.p95 > cover_ms:
        # A chunk is ready one inference after its observation and its successor two after it.
        findings.add(
            Verdict.WARN,
            f"inference p95 {total.p95:.0f} ms is more than half of the {cover_ms:.0f} ms that a "
            "chunk covers: chunks run out before the next one",
        )


def _check_silence(facts: HealthFacts, findings: _Findings) -> None:
    if facts.silence_ns <= facts.cover_ns:
        return
    verdict = Verdict.ERROR if facts.silence_ns > facts.silence_limit_ns else Verdict.WARN
    findings.add(verdict, f"no new chunk for {facts.silence_ns / 1e9:.1f} s")
