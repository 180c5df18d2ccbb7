"""The synchronisation on timelines of integer nanoseconds (written in ms), without sleeping."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from qvla_ros.policy.frame_sync import (
    STATE,
    Frame,
    FrameSync,
    Sample,
    SyncSettings,
    camera_source,
    observe,
    request_interval_ns,
)

MS = 1_000_000
SETTINGS = SyncSettings(
    max_age_ns=200 * MS, max_skew_ns=50 * MS, wait_ns=20 * MS, future_tolerance_ns=5 * MS
)


def make_sync(interval_ms: int = 0) -> FrameSync:
    settings = replace(SETTINGS, request_interval_ns=interval_ms * MS)
    sync = FrameSync("primary", ["wrist", "state"], settings)
    sync.instruct("pick", 0)
    return sync


def add(sync: FrameSync, source: str, stamp_ms: float, now_ms: float) -> bool:
    message = f"{source}@{stamp_ms}"
    return sync.add(source, Sample(round(stamp_ms * MS), message), round(now_ms * MS))


def add_all(sync: FrameSync, stamp_ms: float) -> None:
    for source in ("wrist", "state", "primary"):
        add(sync, source, stamp_ms, stamp_ms)


def take(sync: FrameSync, now_ms: float) -> list[str] | None:
    frame = sync.take(round(now_ms * MS))
    return None if frame is None else sorted(s.message for s in frame.samples.values())


def test_samples_of_one_instant_are_put_together_at_once() -> None:
    sync = make_sync()
    for source in ("wrist", "state", "primary"):
        add(sync, source, 100, 101)
    assert take(sync, 101) == ["primary@100", "state@100", "wrist@100"]


def test_an_anchor_waits_for_samples_as_new_as_itself() -> None:
    sync = make_sync()
    add(sync, "wrist", 60, 61)
    add(sync, "state", 99, 100)
    add(sync, "primary", 100, 101)
    assert take(sync, 101) is None
    add(sync, "wrist", 100, 105)
    add(sync, "state", 104, 105)
    assert take(sync, 105) == ["primary@100", "state@99", "wrist@100"]


def test_an_anchor_that_waited_long_enough_takes_the_newest_that_is_not_later() -> None:
    sync = make_sync()
    add(sync, "wrist", 60, 61)
    add(sync, "wrist", 70, 71)
    add(sync, "state", 99, 100)
    add(sync, "primary", 100, 101)
    assert take(sync, 119) is None
    assert take(sync, 120) == ["primary@100", "state@99", "wrist@70"]


def test_a_sample_later_than_the_anchor_is_never_used() -> None:
    sync = make_sync()
    add(sync, "primary", 100, 101)
    add(sync, "wrist", 101, 102)
    add(sync, "state", 101, 102)
    assert take(sync, 130) is None
    assert sync.drops == {"missing_wrist": 1}


def test_cameras_out_of_step_give_nothing_and_are_counted_once_an_anchor() -> None:
    sync = make_sync()
    add(sync, "wrist", 40, 41)
    add(sync, "state", 100, 100)
    add(sync, "primary", 100, 101)
    assert [take(sync, now) for now in (121, 122, 123)] == [None, None, None]
    assert sync.drops == {"out_of_step_wrist": 1}


def test_the_oldest_input_dates_the_set() -> None:
    sync = make_sync()
    add(sync, "wrist", 70, 71)
    add(sync, "state", 90, 91)
    add(sync, "primary", 100, 101)
    frame = sync.take(130 * MS)
    assert frame is not None
    assert (frame.stamp_ns, frame.anchor_ns) == (70 * MS, 100 * MS)


def test_a_sample_that_comes_stale_is_refused() -> None:
    sync = make_sync()
    assert not add(sync, "primary", 100, 301)
    assert add(sync, "primary", 101, 301)
    assert sync.drops == {"stale_observation": 1}


def test_a_set_that_grew_stale_in_the_sync_is_refused() -> None:
    sync = make_sync()
    for source in ("wrist", "state", "primary"):
        add(sync, source, 100, 101)
    assert take(sync, 301) is None
    assert sync.drops == {"stale_observation": 1}


def test_a_stamp_from_the_future_is_refused() -> None:
    sync = make_sync()
    assert add(sync, "state", 105, 100)
    assert not add(sync, "state", 106, 100)
    assert sync.drops == {"future_stamp": 1}


def test_repeated_and_late_samples_are_refused() -> None:
    sync = make_sync()
    add(sync, "state", 100, 101)
    assert not add(sync, "state", 100, 102)
    assert not add(sync, "state", 99, 103)
    assert sync.drops == {"out_of_order": 2}


def test_a_clock_that_jumps_back_empties_the_sync() -> None:
    sync = make_sync()
    assert not sync.clock_jumped_back(101 * MS)
    for source in ("wrist", "state", "primary"):
        add(sync, source, 100, 101)
    assert not sync.clock_jumped_back(97 * MS), "the tolerance allows small corrections"
    assert sync.clock_jumped_back(10 * MS)
    assert take(sync, 11) is None
    assert sync.drops == {"clock_jumped_back": 3}
    assert add(sync, "primary", 12, 13), "what comes after the jump is taken again"


def test_a_frame_is_not_given_twice() -> None:
    sync = make_sync()
    add_all(sync, 100)
    assert take(sync, 100) is not None
    assert take(sync, 101) is None
    assert sync.drops == {}


def test_frames_that_were_used_keep_the_pace_and_others_delay_nothing() -> None:
    sync = make_sync(interval_ms=90)
    taken = []
    for stamp_ms in range(100, 500, 50):
        add_all(sync, stamp_ms)
        frame = sync.take(stamp_ms * MS)
        if frame is not None:
            taken.append(stamp_ms)
            if stamp_ms != 200:  # this one could not be decoded
                sync.used(frame)
    assert taken == [100, 200, 250, 350, 450]


def test_another_instruction_asks_for_a_frame_at_once() -> None:
    sync = make_sync(interval_ms=1000)
    add_all(sync, 100)
    frame = sync.take(100 * MS)
    assert frame is not None
    sync.used(frame)
    assert not sync.instruct("pick", 101 * MS)
    assert take(sync, 101) is None
    assert sync.instruct("place", 102 * MS)
    frame = sync.take(102 * MS)
    assert frame is not None
    assert (frame.anchor_ns, frame.instruction) == (100 * MS, "place")
    assert frame.instruction_ns == 102 * MS


def test_without_an_instruction_there_is_no_frame_and_the_first_one_replaces_nothing() -> None:
    sync = FrameSync("primary", ["wrist", "state"], SETTINGS)
    add_all(sync, 100)
    assert [take(sync, 100), take(sync, 101)] == [None, None]
    assert sync.drops == {"missing_instruction": 1}
    assert not sync.instruct("pick", 102 * MS)
    assert take(sync, 102) is not None


def test_it_tells_when_a_waiting_anchor_will_be_used_whatever_comes() -> None:
    sync = make_sync()
    assert sync.wake_ns(0) is None
    add(sync, "wrist", 99, 99)
    add(sync, "state", 99, 99)
    add(sync, "primary", 100, 101)
    assert take(sync, 101) is None
    assert sync.wake_ns(101 * MS) == 120 * MS
    assert take(sync, 120) is not None
    assert sync.wake_ns(120 * MS) is None


def test_the_interval_is_half_a_horizon_less_a_quarter_of_a_step() -> None:
    assert request_interval_ns(8, 50 * MS) == 187.5 * MS
    assert request_interval_ns(8, 50 * MS, 100 * MS) == 87.5 * MS
    assert request_interval_ns(8, 50 * MS, 1) == 0


def test_a_frame_of_messages_becomes_an_observation_dated_by_its_oldest_sample() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    image = SimpleNamespace(encoding="rgb8", height=2, width=2, step=6, data=pixels.tobytes())
    state = SimpleNamespace(name=["b", "a"], position=[2.0, 1.0])
    samples = {camera_source("primary"): Sample(7, image), STATE: Sample(5, state)}
    seen = observe(Frame(7, samples, "pick", 0), {"primary": "as_is"}, ["a", "b"])
    assert (seen.stamp_ns, seen.instruction) == (5, "pick")
    assert seen.state.tolist() == [1.0, 2.0]
    assert np.array_equal(seen.images["primary"], pixels)
    turned = observe(Frame(7, samples, "pick", 0), {"primary": "rotate_180"}, ["a", "b"])
    assert np.array_equal(turned.images["primary"], pixels[::-1, ::-1])


def test_what_is_missing_is_named() -> None:
    sync = make_sync()
    add(sync, "primary", 100, 101)
    assert sync.waiting_for(102 * MS) == ["wrist", "state"]
    add(sync, "wrist", 300, 301)
    assert sync.waiting_for(301 * MS) == ["primary", "state"]


def test_a_fast_source_is_kept_long_enough_for_a_late_camera() -> None:
    sync = make_sync()
    for stamp_ms in range(1, 151):
        add(sync, "state", stamp_ms, stamp_ms)
    add(sync, "wrist", 60, 151)
    add(sync, "primary", 60, 151)
    assert take(sync, 151) == ["primary@60", "state@60", "wrist@60"]
