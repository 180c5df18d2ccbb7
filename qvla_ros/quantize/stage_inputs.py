"""What the layers of one stage read, batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.stages import Stage, State

KEPT_BYTES = 1 << 30
"""Of answers of finished layers that are kept; those beyond it are computed again."""


class StageInputs:
    """One run of a stage on every batch: inputs of its layers, and the states behind it."""

    def __init__(
        self,
        network: VlaNetwork,
        stage: Stage,
        layers: Sequence[LinearLayer],
        states: Sequence[State],
    ) -> None:
        """Run the stage; layers that read the very same tensor hold it once."""
        self._layers = list(layers)
        self._found: list[dict[str, Tensor]] = []
        self.after: list[State] = []
        for state in states:
            found: dict[str, Tensor] = {}
            with torch.no_grad(), _watching(network, layers, found):
                self.after.append(stage.run(state))
            self._found.append(found)

    def groups(self) -> list[list[LinearLayer]]:
        """The layers in order, those that read the very same tensor together."""
        groups: list[list[LinearLayer]] = []
        inputs = self._found[0]
        for layer in self._layers:
            if groups and inputs[groups[-1][0].name] is inputs[layer.name]:
                groups[-1].append(layer)
            else:
                groups.append([layer])
        return groups

    def take(self, group: Sequence[LinearLayer]) -> list[Tensor]:
        """What a group reads, ``[tokens, columns]`` a batch; it is not held any longer."""
        taken = [found[group[0].name] for found in self._found]
        for found in self._found:
            for layer in group:
                del found[layer.name]
        return [inputs.reshape(-1, group[0].columns) for inputs in taken]


@contextmanager
def _watching(
    network: VlaNetwork, layers: Sequence[LinearLayer], found: dict[str, Tensor]
) -> Iterator[None]:
    def take(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name] = inputs[0]

    with ExitStack() as hooks:
        for layer in layers:
            module = network.get_submodule(layer.name)
            handle = module.register_forward_pre_hook(partial(take, layer.name))
            hooks.callback(handle.remove)
        yield


class _Seen(Exception):  # noqa: N818 (no error: it ends a stage early)
    """The wanted input was read."""


class GrowingStage:
    """A stage whose layers get new weights one after the other, run as far as they have them.

    The answers of finished layers are kept, so that each of them is computed once a batch.
    """

    def __init__(
        self,
        network: VlaNetwork,
        stage: Stage,
        layers: Sequence[LinearLayer],
        states: Sequence[State],
    ) -> None:
        """Look at ``stage`` of ``network``, none of whose layers is finished."""
        self._network, self._stage, self._states = network, stage, states
        self._layers = [layer.name for layer in layers]
        self._finished: set[str] = set()
        self._answers: dict[tuple[int, str], Tensor] = {}
        self._room = KEPT_BYTES

    def inputs(self, layer: LinearLayer) -> list[Tensor]:
        """What a layer reads now, ``[tokens, columns]`` a batch."""
        found: list[Tensor] = []

        def take(module: nn.Module, inputs: tuple[Tensor]) -> None:
            found.append(inputs[0].reshape(-1, layer.columns))
            raise _Seen

        handle = self._network.get_submodule(layer.name).register_forward_pre_hook(take)
        try:
            for batch in range(len(self._states)):
                with suppress(_Seen):
                    self._run(batch)
        finally:
            handle.remove()
        return found

    def finish(self, layer: LinearLayer) -> None:
        """From now on the layer's weight stays."""
        self._finished.add(layer.name)

    def after(self) -> list[State]:
        """The states behind the stage."""
        return [self._run(batch) for batch in range(len(self._states))]

    def _run(self, batch: int) -> State:
        modules = [(name, self._network.get_submodule(name)) for name in self._layers]
        try:
            for name, module in modules:
                module.forward = partial(self._answer, batch, name, module)
            with torch.no_grad():
                return self._stage.run(self._states[batch])
        finally:
            for _, module in modules:
                module.__dict__.pop("forward", None)

    def _answer(self, batch: int, name: str, module: nn.Module, inputs: Tensor) -> Tensor:
        kept = self._answers.get((batch, name))
        if kept is not None:
            return kept
        answer: Tensor = type(module).forward(module, inputs)
        if name in self._finished and answer.nbytes <= self._room:
            self._room -= answer.nbytes
            self._answers[batch, name] = answer
        return answer
