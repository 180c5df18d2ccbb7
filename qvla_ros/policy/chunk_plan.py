"""What is to be followed of overlapping chunks, and whether it keeps the limits of actions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.chunk_strategy import Accepted, ChunkStrategy, action_index
from qvla_ros.policy.schedule import SchedulerSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """What to follow until something newer comes: it is judged, sent and executed as it stands.

    Attributes:
        chunk: The newest chunk as the strategy mixes it with those before it, clamped where the
            settings say so.
        first_index: The first action still due.
        clipped_count: Values of the plan that were clamped.
        violation: Which limit it breaks, in words; empty if none, or if it was clamped.
    """

    chunk: ActionChunk
    first_index: int
    clipped_count: int
    violation: str


def clamped(chunk: ActionChunk, settings: SchedulerSettings) -> tuple[ActionChunk, int]:
    """A chunk as the policy said it, within its limits where they clamp, and values changed."""
    if settings.limits is None or not settings.clamp:
        return chunk, 0
    actions, count = settings.limits.clamp(chunk.actions)
    return ActionChunk(chunk.observed_at_ns, chunk.period_ns, actions), count


def make_plan(
    chunks: Sequence[Accepted],
    strategy: ChunkStrategy,
    settings: SchedulerSettings,
    followed: np.ndarray | None,
) -> Plan:
    """Mix the newest chunk with those before it, and hold the outcome against the limits.

    Limits are kept by every row that can still be followed, from one to the next, and from what is
    followed now to the first of them: so no strategy lets a robot step farther than another.

    Args:
        chunks: At most ``strategy.depth``, from ``clamped``, the newest last; its ``at_ns`` is the
            present.
        strategy: How they are mixed.
        settings: The limits in time and of the actions.
        followed: The action due now of the plan before, ``float32 [action_dim]``; ``None`` if
            nothing is followed.
    """
    newest, now_ns = chunks[-1].chunk, chunks[-1].at_ns
    first = action_index(newest, now_ns)
    end = -(-(settings.valid_until_ns(newest) - newest.observed_at_ns) // newest.period_ns)
    plan = newest if strategy.depth == 1 else _mixed(chunks, strategy, settings)
    limits = settings.limits
    if limits is None:
        return Plan(plan, first, 0, "")
    before = [] if followed is None else [followed]
    path = np.stack([*before, *plan.actions[first:end]])
    if not settings.clamp:
        violation = limits.violation(newest.actions) or limits.violation(path) or ""
        return Plan(plan, first, 0, violation)
    path, count = limits.clamp(path)
    if count:
        actions = plan.actions.copy()
        actions[first:end] = path[len(before) :]
        plan = ActionChunk(plan.observed_at_ns, plan.period_ns, actions)
    return Plan(plan, first, count, "")


def _mixed(
    chunks: Sequence[Accepted], strategy: ChunkStrategy, settings: SchedulerSettings
) -> ActionChunk:
    """Each row as the strategy means it when it is due; the one under way, as it does now."""
    newest, now_ns = chunks[-1].chunk, chunks[-1].at_ns
    under_way = action_index(newest, now_ns)
    actions = newest.actions.copy()
    for row in range(newest.horizon):
        due_ns = newest.observed_at_ns + row * newest.period_ns
        at_ns = max(due_ns, now_ns) if row == under_way else due_ns
        valid = [one for one in chunks if at_ns < settings.valid_until_ns(one.chunk)]
        if valid and valid[-1] is chunks[-1]:
            actions[row] = strategy.action(valid, at_ns)
    return ActionChunk(newest.observed_at_ns, newest.period_ns, actions)
