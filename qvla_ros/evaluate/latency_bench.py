"""Measure what a row of each width costs on this machine: the table of budgets in milliseconds."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.evaluate.turns import time_in_turns
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import ModelInputs, VlaNetwork
from qvla_ros.quantize.latency_table import LatencyTable, LayerLatency
from qvla_ros.quantize.widths import WIDTHS

_FEWER = 4  # the share of rows of the second point of each line


@dataclass(frozen=True, slots=True)
class _Size:
    """What decides the time of a layer."""

    rows: int
    columns: int
    tokens: int


def measure_latency_table(
    network: VlaNetwork,
    frame: ModelInputs,
    device: str,
    repeats: int = 15,
    on_progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time every layer's size at every width, with 16- and 8-bit activations, on the CPU.

    A layer's time is taken as a line over its rows: a fixed part, and a part a row of each width.
    It is measured with all rows of one width, and with a quarter of them.

    Args:
        network: The float network; its dtype is that of the activations.
        frame: One observation, which says how many tokens each layer reads.
        device: Name of this machine, for the table.
        repeats: Runs of each; medians count.
        on_progress: Called with (done, total) sizes.
    """
    layers = network.linear_layers()
    dtype = next(network.parameters()).dtype
    frame = replace(frame, pixels=frame.pixels.to(dtype), state=frame.state.to(dtype))
    tokens = _tokens(network, layers, frame)
    sizes = {one.name: _Size(one.rows, one.columns, tokens[one.name]) for one in layers}
    every = sorted(set(sizes.values()), key=lambda size: (size.rows, size.columns, size.tokens))
    lines: dict[tuple[_Size, int], tuple[float, dict[int, float]]] = {}
    for done, size in enumerate(every, start=1):
        for activation_bits in (16, 8):
            lines[size, activation_bits] = _line(size, activation_bits, dtype, repeats)
        if on_progress is not None:
            on_progress(done, len(every))
    entries = [
        LayerLatency(layer.name, layer.rows, layer.columns, bits, *lines[sizes[layer.name], bits])
        for layer in layers
        for bits in (16, 8)
    ]
    return LatencyTable(device, _other_ms(network, layers, frame, repeats), tuple(entries))


def _tokens(network: VlaNetwork, layers: list[LinearLayer], frame: ModelInputs) -> dict[str, int]:
    """Tokens that each layer reads for one observation."""
    found: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name] = inputs[0].numel() // inputs[0].shape[-1]

    handles = [
        network.get_submodule(one.name).register_forward_pre_hook(partial(count, one.name))
        for one in layers
    ]
    try:
        with torch.inference_mode():
            network(frame)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _line(
    size: _Size, activation_bits: int, dtype: torch.dtype, repeats: int
) -> tuple[float, dict[int, float]]:
    """Milliseconds of the fixed part, and of a row of each width."""
    few = max(1, size.rows // _FEWER)
    x = torch.randn(size.tokens, size.columns).to(dtype)
    runs = {
        f"{bits}/{rows}": partial(_layer(rows, size.columns, bits, activation_bits), x)
        for bits in WIDTHS[1:]
        for rows in {few, size.rows}
    }
    with torch.inference_mode():
        seconds = time_in_turns(runs, repeats)
    times = {name: 1e3 * statistics.median(found) for name, found in seconds.items()}
    rows_apart = max(1, size.rows - few)
    row_ms = {
        bits: max(0.0, times[f"{bits}/{size.rows}"] - times[f"{bits}/{few}"]) / rows_apart
        for bits in WIDTHS[1:]
    }
    fixed = [times[f"{bits}/{few}"] - few * row_ms[bits] for bits in WIDTHS[1:]]
    return max(0.0, statistics.median(fixed)), row_ms


def _layer(rows: int, columns: int, bits: int, activation_bits: int) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(0)
    top = 2 ** min(bits, 8)
    packed = PackedLinear.assemble(
        name=f"{rows}x{columns}",
        columns=columns,
        row_bits=torch.full((rows,), bits),
        codes=torch.randint(0, top, (rows, columns), dtype=torch.uint8, generator=generator),
        scale=torch.full((rows,), 0.01, dtype=torch.bfloat16),
        zero=torch.full((rows,), top / 2, dtype=torch.bfloat16),
        weight=torch.randn(rows, columns, generator=generator).to(torch.bfloat16),
        activation_bits=activation_bits,
    )
    return QuantizedLinear(packed, None)


def _other_ms(
    network: VlaNetwork, layers: list[LinearLayer], frame: ModelInputs, repeats: int
) -> float:
    """The network without its planned layers: they answer zeros at once."""
    with torch.inference_mode(), _silenced(network, layers):
        seconds = time_in_turns({"other": lambda: network(frame)}, repeats)
    return 1e3 * statistics.median(seconds["other"])


@contextmanager
def _silenced(network: VlaNetwork, layers: list[LinearLayer]) -> Iterator[None]:
    modules = [network.get_submodule(layer.name) for layer in layers]
    for layer, module in zip(layers, modules, strict=True):
        vars(module)["forward"] = partial(_zeros, layer.rows)
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]


def _zeros(rows: int, inputs: Tensor) -> Tensor:
    return inputs.new_zeros(*inputs.shape[:-1], rows)
