import io

import pytest

from qvla_ros.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, steps: int, seconds: float = 1.0) -> str:
    clock = Clock()
    with Progress(steps, "work", stream, clock) as progress:
        for step in range(steps):
            clock.now += seconds
            progress.advance(note=f"layer {step}")
    return stream.getvalue()


def test_a_log_gets_a_line_for_each_tenth_and_one_at_the_end():
    lines = run(io.StringIO(), 100).splitlines()
    assert len(lines) == 10
    assert lines[0] == "work: 10/100 · 1 min 30 s left · layer 9"
    assert lines[-1] == "work: done, 100/100 in 1 min 40 s"
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_a_terminal_gets_one_line_that_moves():
    text = run(Terminal(), 20)
    assert text.count("\n") == 1
    assert "10/20 · 10 s left · layer 9" in text
    assert text.endswith("work: done, 20/20 in 20 s\n")


def test_a_terminal_is_not_redrawn_for_every_step():
    assert run(Terminal(), 10_000, seconds=0.001).count("\r") < 150


def test_an_error_is_told_and_goes_on():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(5, "work", stream, Clock()) as progress:
        progress.advance(2)
        raise RuntimeError
    assert stream.getvalue().splitlines()[-1] == "work: stopped, 2/5 in 0 s"


def test_nothing_to_do_is_done():
    stream = io.StringIO()
    with Progress(0, "work", stream, Clock()):
        pass
    assert stream.getvalue() == "work: done, 0/0 in 0 s\n"


def test_it_fits_a_callback_of_done_and_total():
    stream = io.StringIO()
    with Progress(0, "work", stream, Clock()) as progress:
        progress.set(3, 4)
    assert "3/4" in stream.getvalue()
