"""Backwards through the network, one stage at a time.

The forward pass keeps only what the stages read. Then, from the last stage to the first, each
stage is run again with gradients, and every layer in it is shown its inputs and the gradients of
``probes`` random projections of the action with respect to its outputs. At any time the memory
holds the stage inputs (those beyond a limit are in files), the probes' gradients at one stage
boundary, and one stage's own tape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import ACTIONS, ModelInputs, VlaNetwork
from qvla_ros.models.stages import Stage, State
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.kept_states import KeptStates


@dataclass(frozen=True, slots=True)
class LayerSlopes:
    """One layer on one batch of frames.

    Attributes:
        layer: Which.
        inputs: ``[frames, tokens, columns]``.
        slopes: ``[frames, tokens, rows]``: gradient of one probe with respect to the outputs.
        probe: Number of the probe.
    """

    layer: LinearLayer
    inputs: Tensor
    slopes: Tensor
    probe: int


OnSlopes = Callable[[LayerSlopes], None]


class GradientSweep:
    """One sweep over fixed batches; ``visit`` every stage, from the last to the first."""

    def __init__(
        self,
        network: VlaNetwork,
        batches: Sequence[ModelInputs],
        metric: ActionMetric,
        probes: int,
        seed: int,
        kept: KeptStates | None = None,
    ) -> None:
        """Run forward and draw the probes: signs, the same for the same seed.

        Args:
            network: The float network.
            batches: Frames.
            metric: What counts as an action change.
            probes: How many a frame.
            seed: Of the signs.
            kept: Keeps what the stages read.
        """
        self._kept = kept or KeptStates()
        self._layers = network.linear_layers()
        self._network = network
        self._stages = network.stages()
        self._sizes = [len(batch.pixels) for batch in batches]
        self._reads: list[list[Callable[[], State]]] = [[] for _ in self._stages]
        generator = torch.Generator().manual_seed(seed)
        self._slopes: list[list[dict[str, Tensor]]] = []
        for batch in batches:
            actions = self._forward(batch)
            drawn = metric.probes(probes, actions, generator)
            self._slopes.append([{ACTIONS: probe} for probe in drawn])

    @property
    def stages(self) -> list[Stage]:
        """In execution order."""
        return self._stages

    def slopes(self) -> dict[str, Tensor]:
        """The probes' gradients at the current boundary, by batch, probe and tensor name."""
        return {
            f"{batch}/{probe}/{name}": tensor
            for batch, probes in enumerate(self._slopes)
            for probe, slopes in enumerate(probes)
            for name, tensor in slopes.items()
        }

    def go_to(self, index: int, slopes: Mapping[str, Tensor]) -> None:
        """Go on where ``slopes()`` was taken: after stage ``index`` was left."""
        for reads in self._reads[index:]:
            reads.clear()
        for probes in self._slopes:
            for one in probes:
                one.clear()
        for key, tensor in slopes.items():
            batch, probe, name = key.split("/", 2)
            self._slopes[int(batch)][int(probe)][name] = tensor

    def _forward(self, batch: ModelInputs) -> Tensor:
        with torch.no_grad():
            state = self._network.first_state(batch)
            for stage, reads in zip(self._stages, self._reads, strict=True):
                reads.append(self._kept.keep({name: state[name] for name in stage.reads}))
                state = stage.run(state)
        return state[ACTIONS]

    def layers_of(self, index: int) -> list[LinearLayer]:
        """The layers that a stage executes."""
        return [layer for layer in self._layers if self._stages[index].owns(layer.name)]

    def show(self, index: int, on_slopes: OnSlopes, probes: int | None = None) -> None:
        """Show every layer of stage ``index`` its inputs and slopes, batch by batch.

        Args:
            index: The stage; all later ones must have been left.
            on_slopes: Called for every layer, batch and probe.
            probes: Only the first so many.
        """
        self._run(index, on_slopes, probes, keep=False)

    def leave(self, index: int, on_slopes: OnSlopes) -> None:
        """As ``show`` with all probes, and go on: the slopes move before the stage."""
        self._run(index, on_slopes, None, keep=True)
        self._reads[index] = []

    def _run(self, index: int, on_slopes: OnSlopes, probes: int | None, keep: bool) -> None:
        stage = self._stages[index]
        for batch, reads in enumerate(self._reads[index]):
            taps = [
                _Tap(self._network, layer, self._sizes[batch], on_slopes)
                for layer in self.layers_of(index)
            ]
            try:
                with torch.enable_grad():
                    state = reads()
                    inputs = [state[name].detach().requires_grad_(True) for name in stage.reads]
                    output = stage.apply(*inputs)
                self._backward(stage, batch, (inputs, output), taps, probes, keep)
            finally:
                for tap in taps:
                    tap.remove()

    def _backward(
        self,
        stage: Stage,
        batch: int,
        tape: tuple[list[Tensor], Tensor],
        taps: "list[_Tap]",
        probes: int | None,
        keep: bool,
    ) -> None:
        inputs, output = tape
        for number, slopes in enumerate(self._slopes[batch][:probes]):
            for tap in taps:
                tap.probe = number
            found = torch.autograd.grad(
                output, inputs, slopes[stage.writes], retain_graph=True, allow_unused=True
            )
            if not keep:
                continue
            del slopes[stage.writes]
            for name, gradient in zip(stage.reads, found, strict=True):
                if gradient is not None:
                    slopes[name] = slopes[name] + gradient if name in slopes else gradient


class _Tap:
    """A hook on one layer that hands its inputs and each probe's slopes on."""

    def __init__(
        self, network: VlaNetwork, layer: LinearLayer, frames: int, on_slopes: OnSlopes
    ) -> None:
        self.probe = 0
        self._layer = layer
        self._frames = frames
        self._on_slopes = on_slopes
        self._handle = network.get_submodule(layer.name).register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        tokens = inputs[0].detach().reshape(self._frames, -1, self._layer.columns)
        output.register_hook(partial(self._backward, tokens))

    def _backward(self, inputs: Tensor, gradient: Tensor) -> None:
        slopes = gradient.reshape(self._frames, -1, self._layer.rows)
        self._on_slopes(LayerSlopes(self._layer, inputs, slopes, self.probe))

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()
