"""The buffer on timelines of integer nanoseconds (written in ms), without sleeping."""

from qvla_ros.node.observation_buffer import ObservationBuffer, Sample, SyncSettings

MS = 1_000_000
SETTINGS = SyncSettings(
    max_age_ns=200 * MS, max_skew_ns=50 * MS, wait_ns=20 * MS, future_tolerance_ns=5 * MS
)


def make_buffer() -> ObservationBuffer:
    return ObservationBuffer("primary", ["wrist", "state"], SETTINGS)


def add(buffer: ObservationBuffer, source: str, stamp_ms: float, now_ms: float) -> bool:
    message = f"{source}@{stamp_ms}"
    return buffer.add(source, Sample(round(stamp_ms * MS), message), round(now_ms * MS))


def take(buffer: ObservationBuffer, now_ms: float, not_before_ms: float = 0) -> list[str] | None:
    synced = buffer.take(round(now_ms * MS), round(not_before_ms * MS))
    return None if synced is None else sorted(s.message for s in synced.samples.values())


def test_samples_of_one_instant_are_put_together_at_once() -> None:
    buffer = make_buffer()
    for source in ("wrist", "state", "primary"):
        add(buffer, source, 100, 101)
    assert take(buffer, 101) == ["primary@100", "state@100", "wrist@100"]


def test_an_anchor_waits_for_samples_as_new_as_itself() -> None:
    buffer = make_buffer()
    add(buffer, "wrist", 60, 61)
    add(buffer, "state", 99, 100)
    add(buffer, "primary", 100, 101)
    assert take(buffer, 101) is None
    add(buffer, "wrist", 100, 105)
    add(buffer, "state", 104, 105)
    assert take(buffer, 105) == ["primary@100", "state@99", "wrist@100"]


def test_an_anchor_that_waited_long_enough_takes_the_newest_that_is_not_later() -> None:
    buffer = make_buffer()
    add(buffer, "wrist", 60, 61)
    add(buffer, "wrist", 70, 71)
    add(buffer, "state", 99, 100)
    add(buffer, "primary", 100, 101)
    assert take(buffer, 119) is None
    assert take(buffer, 120) == ["primary@100", "state@99", "wrist@70"]


def test_a_sample_later_than_the_anchor_is_never_used() -> None:
    buffer = make_buffer()
    add(buffer, "primary", 100, 101)
    add(buffer, "wrist", 101, 102)
    add(buffer, "state", 101, 102)
    assert take(buffer, 130) is None
    assert buffer.drops == {"missing_wrist": 1}


def test_cameras_out_of_step_give_nothing_and_are_counted_once_an_anchor() -> None:
    buffer = make_buffer()
    add(buffer, "wrist", 40, 41)
    add(buffer, "state", 100, 100)
    add(buffer, "primary", 100, 101)
    assert [take(buffer, now) for now in (121, 122, 123)] == [None, None, None]
    assert buffer.drops == {"out_of_step_wrist": 1}


def test_the_oldest_input_dates_the_set() -> None:
    buffer = make_buffer()
    add(buffer, "wrist", 70, 71)
    add(buffer, "state", 90, 91)
    add(buffer, "primary", 100, 101)
    synced = buffer.take(130 * MS, 0)
    assert synced is not None
    assert (synced.oldest_ns, synced.anchor_ns) == (70 * MS, 100 * MS)


def test_a_sample_that_comes_stale_is_refused() -> None:
    buffer = make_buffer()
    assert not add(buffer, "primary", 100, 301)
    assert add(buffer, "primary", 101, 301)
    assert buffer.drops == {"stale_observation": 1}


def test_a_set_that_grew_stale_in_the_buffer_is_refused() -> None:
    buffer = make_buffer()
    for source in ("wrist", "state", "primary"):
        add(buffer, source, 100, 101)
    assert take(buffer, 300) is not None
    assert take(buffer, 301) is None
    assert buffer.drops == {"stale_observation": 1}


def test_a_stamp_from_the_future_is_refused() -> None:
    buffer = make_buffer()
    assert add(buffer, "state", 105, 100)
    assert not add(buffer, "state", 106, 100)
    assert buffer.drops == {"future_stamp": 1}


def test_repeated_and_late_samples_are_refused() -> None:
    buffer = make_buffer()
    add(buffer, "state", 100, 101)
    assert not add(buffer, "state", 100, 102)
    assert not add(buffer, "state", 99, 103)
    assert buffer.drops == {"out_of_order": 2}


def test_a_clock_that_jumps_back_empties_the_buffer() -> None:
    buffer = make_buffer()
    assert not buffer.clock_jumped_back(101 * MS)
    for source in ("wrist", "state", "primary"):
        add(buffer, source, 100, 101)
    assert not buffer.clock_jumped_back(97 * MS), "the tolerance allows small corrections"
    assert buffer.clock_jumped_back(10 * MS)
    assert take(buffer, 11) is None
    assert buffer.drops == {"clock_jumped_back": 3}
    assert add(buffer, "primary", 12, 13), "what comes after the jump is taken again"


def test_an_anchor_before_the_wanted_time_is_left_alone() -> None:
    buffer = make_buffer()
    for source in ("wrist", "state", "primary"):
        add(buffer, source, 100, 101)
    assert take(buffer, 102, not_before_ms=101) is None
    assert buffer.drops == {}


def test_what_is_missing_is_named() -> None:
    buffer = make_buffer()
    add(buffer, "primary", 100, 101)
    assert buffer.waiting_for(102 * MS) == ["wrist", "state"]
    add(buffer, "wrist", 300, 301)
    assert buffer.waiting_for(301 * MS) == ["primary", "state"]


def test_a_fast_source_is_kept_long_enough_for_a_late_camera() -> None:
    buffer = make_buffer()
    for stamp_ms in range(1, 151):
        add(buffer, "state", stamp_ms, stamp_ms)
    add(buffer, "wrist", 60, 151)
    add(buffer, "primary", 60, 151)
    assert take(buffer, 151) == ["primary@60", "state@60", "wrist@60"]
