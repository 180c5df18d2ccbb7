"""How far a long command is: one line that moves on a terminal, a few log lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_BAR_CELLS = 24
_REDRAW_S = 0.1
_LOG_LINES = 10


class Progress:
    """Progress with the time left, on standard error, as a context manager.

    Args:
        total: Steps to come; 0 if there are none.
        label: What is being done.
        stream: Where to write; standard error if ``None``.
        clock_s: Seconds that only rise.
    """

    def __init__(
        self,
        total: int,
        label: str,
        stream: TextIO | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._label = label
        self._stream = stream if stream is not None else sys.stderr
        self._clock_s = clock_s
        self._moves = self._stream.isatty()
        self._done = 0
        self._note = ""
        self._began_s = clock_s()
        self._drawn_s = float("-inf")
        self._logged = 0

    def __enter__(self) -> "Progress":
        self._began_s = self._clock_s()
        if self._moves:
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outcome = "done" if kind is None else "stopped"
        spent = _duration(self._clock_s() - self._began_s)
        line = f"{self._label}: {outcome}, {self._done}/{self._total} in {spent}"
        self._stream.write(f"\r\x1b[K{line}\n" if self._moves else f"{line}\n")
        self._stream.flush()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts ``n`` more steps; ``note`` says what the last one was."""
        self.set(self._done + n, self._total, note)

    def set(self, done: int, total: int, note: str = "") -> None:
        """Sets the count; fits an ``on_progress`` callback."""
        self._done, self._total, self._note = done, total, note
        if self._moves:
            now_s = self._clock_s()
            if now_s - self._drawn_s >= _REDRAW_S or done >= total:
                self._draw()
        else:
            self._log()

    def _draw(self) -> None:
        self._drawn_s = self._clock_s()
        filled = round(_BAR_CELLS * self._share())
        bar = "━" * filled + "─" * (_BAR_CELLS - filled)
        self._stream.write(f"\r\x1b[K{self._label} {bar} {self._status()}")
        self._stream.flush()

    def _log(self) -> None:
        tenth = int(self._share() * _LOG_LINES)
        # The last line is that of __exit__.
        if self._logged < tenth < _LOG_LINES:
            self._logged = tenth
            self._stream.write(f"{self._label}: {self._status()}\n")
            self._stream.flush()

    def _share(self) -> float:
        return min(1.0, self._done / self._total) if self._total > 0 else 1.0

    def _status(self) -> str:
        parts = [f"{self._done}/{self._total}"]
        if 0 < self._done < self._total:
            spent_s = self._clock_s() - self._began_s
            parts.append(f"{_duration(spent_s / self._done * (self._total - self._done))} left")
        if self._note:
            parts.append(self._note)
        return " · ".join(parts)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
