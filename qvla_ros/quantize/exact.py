"""The exact action change of edited layers: single rows, groups of rows, whole layers.

An edit replaces what some layers put out; the weights themselves are never touched. Everything in
front of the first edited stage is computed once for all edits, everything that an edit does not
reach is taken from the unedited run, and several edits go through the rest of the network side by
side in one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qvla_ros.models.network import ACTIONS, ModelInputs, VlaNetwork
from qvla_ros.models.stages import Stage, State
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet

LayerEdit = Callable[[Tensor, Tensor], Tensor]
"""Maps inputs ``[tokens, columns]`` and outputs ``[tokens, rows]`` of a layer to new outputs."""

Edit = Mapping[str, LayerEdit]
"""Layer name to what happens there; all of it at once."""

_SAMPLES = 16  # frames times edits in one batch
_BATCH_FRAMES = 8  # frames whose unedited run is held at a time


@dataclass(frozen=True, slots=True, eq=False)
class RowStep:
    """New weights for some rows of a layer, as a step from the old ones.

    Attributes:
        rows: ``int64 [n]``.
        step: Floating ``[n, columns]``: new minus old weights.
    """

    rows: Tensor
    step: Tensor

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs ``[tokens, rows]`` with the new weights."""
        change = inputs @ self.step.to(inputs.dtype).T
        return outputs.index_add(1, self.rows, change)


def measure_edits(
    network: VlaNetwork,
    calibration: CalibrationSet,
    metric: ActionMetric,
    edits: Sequence[Edit],
    samples: int = _SAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The mean squared action change of each edit, by running the network.

    In float32 a change below about 1e-6 of the action drowns in rounding: for single rows use
    ``in_float64`` around the call. Of the unedited network, the output of every block is held.

    Args:
        network: The float network, in float32 or float64.
        calibration: Frames; all of one number of tokens are run together.
        metric: What counts as an action change.
        edits: Each is measured alone.
        samples: Frames times edits that are run in one batch.
        on_progress: Called with (done, total) edits.

    Returns:
        ``float64 [edits]``.

    Raises:
        ValueError: An edit names a layer that no stage runs.
    """
    stages = network.stages()
    dtype = next(network.parameters()).dtype
    batches = calibration.batches(_BATCH_FRAMES)
    first = [min(_stage_of(stages, name) for name in edit) for edit in edits]
    order = np.argsort(first, kind="stable")
    total = np.zeros(len(edits))
    done = 0
    with torch.inference_mode():
        for batch in batches:
            run = _Run(network, stages, _cast(batch, dtype), metric)
            for chunk in _chunks(order, first, max(1, samples // len(batch.pixels))):
                total[chunk] += run.changes([edits[index] for index in chunk], first[chunk[0]])
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done // len(batches), len(edits))
    return total / len(calibration.frames)


class _Run:
    """The unedited network on one batch of frames, and edited ones from some stage on."""

    def __init__(
        self,
        network: VlaNetwork,
        stages: Sequence[Stage],
        batch: ModelInputs,
        metric: ActionMetric,
    ) -> None:
        self._network, self._stages, self._metric = network, stages, metric
        self._states: list[State] = [network.first_state(batch)]
        for stage in stages:
            self._states.append(stage.run(self._states[-1]))
        self._actions = self._states[-1][ACTIONS]

    def changes(self, edits: Sequence[Edit], start: int) -> np.ndarray:
        """Summed squared action changes over the frames, ``[edits]``; all begin at ``start``."""
        count = len(edits)
        edited: State = {}  # what differs from the unedited run, edit after edit along the batch
        with ExitStack() as hooks:
            for name in {name for edit in edits for name in edit}:
                module = self._network.get_submodule(name)
                handle = module.register_forward_hook(_hook([edit.get(name) for edit in edits]))
                hooks.callback(handle.remove)
            named = {_stage_of(self._stages, name) for edit in edits for name in edit}
            for index in range(start, len(self._stages)):
                stage, state = self._stages[index], self._states[index]
                if index not in named and not any(name in edited for name in stage.reads):
                    continue
                inputs = {
                    name: edited[name] if name in edited else _repeated(state[name], count)
                    for name in stage.reads
                }
                edited[stage.writes] = stage.run(inputs)[stage.writes]
        actions = edited[ACTIONS]
        error = self._metric.squared_error(actions, _repeated(self._actions, count))
        return error.double().view(count, -1).sum(1).numpy()


def _hook(
    edits: Sequence[LayerEdit | None],
) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """A forward hook that lets each edit change its own part of the batch."""

    def after(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        tokens = inputs[0].reshape(len(edits), -1, inputs[0].shape[-1])
        changed = output.reshape(len(edits), -1, output.shape[-1]).clone()
        for index, edit in enumerate(edits):
            if edit is not None:
                changed[index] = edit(tokens[index], changed[index])
        return changed.view_as(output)

    return after


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.ndim - 1))


def _stage_of(stages: Sequence[Stage], layer_name: str) -> int:
    for index, stage in enumerate(stages):
        if stage.owns(layer_name):
            return index
    raise ValueError(f"no stage of the network runs the layer {layer_name!r}")


def _chunks(order: np.ndarray, first: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """Runs of at most ``size`` edits that begin at the same stage."""
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop - start == size or stop == len(order)
        if full or first[order[stop]] != first[order[start]]:
            yield order[start:stop]
            start = stop


def _cast(batch: ModelInputs, dtype: torch.dtype) -> ModelInputs:
    return replace(batch, pixels=batch.pixels.to(dtype), state=batch.state.to(dtype))


@contextmanager
def in_float64(network: VlaNetwork) -> Iterator[None]:
    """Run a float32 network in float64, throughout; afterwards it is as it was, bit for bit.

    ``LlamaRMSNorm`` computes in float32 whatever it is given, so it is replaced meanwhile.

    Raises:
        ValueError: A parameter is not float32: it could not be restored.
    """
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}: measure the float32 network")
    norms = [one for one in network.modules() if isinstance(one, type(network.llama.norm))]
    try:
        network.double()
        for norm in norms:
            norm.forward = partial(_rms_norm, norm)
        with _QuickGelu():
            yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
        network.float()


def _rms_norm(norm: Any, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


class _QuickGelu(TorchFunctionMode):
    """GELU by ``erf``: in float64 on a CPU, PyTorch's own takes six times as long."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if function is F.gelu and not kwargs and args[0].dtype == torch.float64:
            return torch.special.erf(args[0] * 0.5**0.5).add_(1.0).mul_(args[0]).mul_(0.5)
        return function(*args, **(kwargs or {}))
