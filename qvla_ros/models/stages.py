"""A network as a sequence of stages, so that one block at a time can be run, held and measured.

A stage reads some named tensors and writes one. Between stages a batch is only the dictionary of
those tensors: it can be kept, batched over frames, or differentiated stage by stage, without ever
holding the whole network's activations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]
"""Named tensors between two stages; the first dimension counts samples (or images)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the forward pass.

    Attributes:
        name: Module path of what it runs; the layers below that path are executed here.
        reads: Names of the tensors that it takes, in the order of ``apply``'s arguments.
        writes: Name of the tensor that it answers, replacing an earlier one of that name.
        apply: The computation; differentiable.
    """

    name: str
    reads: tuple[str, ...]
    writes: str
    apply: Callable[..., Tensor]

    def run(self, state: Mapping[str, Tensor]) -> State:
        """The state after this stage; the argument is left as it is."""
        return {**state, self.writes: self.apply(*(state[name] for name in self.reads))}

    def owns(self, layer_name: str) -> bool:
        """Whether a layer of that module path is executed by this stage."""
        return layer_name.startswith(f"{self.name}.")


def run_stages(stages: Sequence[Stage], state: Mapping[str, Tensor]) -> State:
    """Run stages one after the other; tensors that no later stage reads are dropped."""
    current = dict(state)
    for index, stage in enumerate(stages):
        current = stage.run(current)
        needed = {name for later in stages[index + 1 :] for name in later.reads}
        current = {
            name: tensor
            for name, tensor in current.items()
            if name in needed or name == stages[-1].writes
        }
    return current
