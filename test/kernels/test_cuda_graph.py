"""Which call is recorded and which is replayed; the recording itself needs a GPU."""

import pytest
import torch

from qvla_ros.kernels import cuda_graph
from qvla_ros.kernels.cuda_graph import GraphCache, Recording

CPU = torch.device("cpu")


class FakeRecorder:
    """Replays by calling the function again on the recording's own inputs."""

    def __init__(self) -> None:
        self.recorded: list[torch.Size] = []

    def __call__(self, function, inputs) -> Recording:
        self.recorded.append(inputs["x"].shape)
        answer = function(inputs)
        return Recording(inputs, lambda: answer.copy_(function(inputs)), answer)


def double(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return 2 * inputs["x"]


def test_one_recording_serves_all_inputs_of_its_shapes() -> None:
    recorder = FakeRecorder()
    cache = GraphCache(double, CPU, recorder)
    for value in (1.0, 5.0, 3.0):
        assert torch.equal(cache({"x": torch.full((3,), value)}), torch.full((3,), 2 * value))
    assert recorder.recorded == [(3,)]
    assert cache.obstacle is None


def test_the_inputs_of_the_caller_are_not_kept() -> None:
    cache = GraphCache(double, CPU, FakeRecorder())
    mine = torch.ones(2)
    cache({"x": mine})
    cache({"x": torch.zeros(2)})
    assert mine.tolist() == [1, 1]


def test_another_length_or_dtype_is_another_recording_and_the_longest_unused_goes() -> None:
    recorder = FakeRecorder()
    cache = GraphCache(double, CPU, recorder, most=2)
    for length in (1, 2, 1, 3, 1, 2):
        cache({"x": torch.ones(length)})
    assert recorder.recorded == [(1,), (2,), (3,), (2,)]
    cache({"x": torch.ones(2, dtype=torch.float64)})
    assert len(recorder.recorded) == 5


@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError])
def test_what_cannot_be_recorded_is_called_plainly_and_says_why(kind, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graph, "device_errors", lambda: (RuntimeError, TimeoutError))

    def refuse(*_: object) -> Recording:
        raise kind("operation not permitted when stream is capturing")

    cache = GraphCache(double, CPU, refuse)
    for _ in range(2):
        assert cache({"x": torch.ones(1)}).tolist() == [2]
    assert cache.obstacle is not None
    assert "not permitted" in cache.obstacle


def test_without_a_recorder_every_call_is_plain() -> None:
    cache = GraphCache(double, CPU, None)
    assert cache({"x": torch.ones(1)}).tolist() == [2]
    assert cache.obstacle is not None
