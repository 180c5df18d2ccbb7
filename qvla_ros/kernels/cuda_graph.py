"""A function of named tensors, recorded once for each of their shapes and then replayed.

Launching two thousand small kernels costs a processor longer than the GPU takes for them; a CUDA
graph is launched at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qvla_ros.kernels.cuda_device import device_errors

Function = Callable[[dict[str, torch.Tensor]], torch.Tensor]
Key = tuple[tuple[str, torch.Size, torch.dtype], ...]

_WARM_UPS = 2  # kernels are compiled, tables and workspaces made, before anything is recorded


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A function that was recorded for one set of shapes.

    Attributes:
        inputs: Where the next inputs are written to.
        replay: Computes ``answer`` from ``inputs``.
        answer: Overwritten by the next replay of any recording of the same cache.
    """

    inputs: dict[str, torch.Tensor]
    replay: Callable[[], object]
    answer: torch.Tensor


Recorder = Callable[[Function, dict[str, torch.Tensor]], Recording]


class GraphRecorder:
    """Records on the device of the inputs; all its recordings share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: dict[str, torch.Tensor]) -> Recording:
        """Run ``function`` on these inputs, which the recording keeps, and record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may ask CUDA for something meanwhile, e.g. how much memory there is.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            answer = function(inputs)
        return Recording(inputs, graph.replay, answer)


class GraphCache:
    """Calls a function through recordings, one for each set of shapes; the latest are kept.

    Nothing is padded, because attention without a mask would see it: two prompts share a
    recording if they have as many tokens.

    Attributes:
        obstacle: Why the function is called plainly; ``None`` while it is recorded.
    """

    def __init__(
        self, function: Function, device: torch.device, recorder: Recorder | None, most: int = 4
    ) -> None:
        self._function = function
        self._device = device
        self._recorder = recorder
        self._most = most
        self._recordings: dict[Key, Recording] = {}
        self.obstacle = "nothing is recorded here" if recorder is None else None

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The function's answer; the inputs may be anywhere. Valid until the next call."""
        recording = self._recording(inputs)
        if recording is None:
            return self._function({k: tensor.to(self._device) for k, tensor in inputs.items()})
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        recording.replay()
        return recording.answer

    def _recording(self, inputs: Mapping[str, torch.Tensor]) -> Recording | None:
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if key not in self._recordings and self._recorder is not None and self.obstacle is None:
            if len(self._recordings) == self._most:
                del self._recordings[next(iter(self._recordings))]  # least recently used
            own = {name: tensor.to(self._device, copy=True) for name, tensor in inputs.items()}
            try:
                self._recordings[key] = self._recorder(self._function, own)
            except device_errors() as error:
                self.obstacle = f"no CUDA graph could be recorded: {error}"
        if key in self._recordings:
            self._recordings[key] = self._recordings.pop(key)
        return self._recordings.get(key)
