"""The closed sets of reasons for not using an input, and for not moving."""

import enum


class DropReason(str, enum.Enum):
    """Why an observation or a chunk was not used; the value is the name in all reports."""

    SUPERSEDED = "superseded"
    """A newer observation came before inference began."""
    NOT_SERVING = "not_serving"
    """The inference loop was stopped or faulted."""
    STALE_OBSERVATION = "stale_observation"
    """The observation was older than its limit when inference was to begin."""
    FUTURE_STAMP = "future_stamp"
    """The stamp lies after the clock by more than the tolerance: clocks disagree or jumped."""
    INFERENCE_FAILED = "inference_failed"
    """The policy could not answer this observation."""
    NON_FINITE = "non_finite"
    """The chunk holds a NaN or an infinity; the whole chunk is refused, never clamped."""
    OUT_OF_LIMITS = "out_of_limits"
    """An action of the chunk is beyond its limits; the whole chunk is refused."""
    EXPIRED = "expired"
    """The chunk was past its time to live or its horizon when it was ready."""
    NOT_NEWER = "not_newer"
    """The chunk answers an observation that is not newer than the current chunk's."""
    FLUSHED = "flushed"
    """The observation was taken before the last flush."""


class HoldReason(str, enum.Enum):
    """Why there is no action now, where no flush is the cause."""

    NO_CHUNK = "no_chunk"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    CLOCK_JUMPED_BACK = "clock_jumped_back"
