"""Which kernel multiplies each layer of a checkpoint on a device, and why: without loading it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qvla_ros.checkpoint.layer_spec import LayerSpec
from qvla_ros.kernels.selection import AUTO, select_kernel


@dataclass(frozen=True, slots=True)
class LayerKernel:
    """One layer and what multiplies it.

    Attributes:
        name: Module path.
        rows: Output channels, and how many of them are stored.
        columns: Input channels, and how many of them are stored.
        rows_by_width: Bits to the number of rows, widest first, 0-bit rows last.
        activation_bits: 16 or 8.
        kernel: Name of the kernel.
        reason: Why this one, and what the layer's form means for it.
    """

    name: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    rows_by_width: dict[int, int]
    activation_bits: int
    kernel: str
    reason: str

    def __str__(self) -> str:
        """One line, without the name and the reason."""
        widths = " ".join(f"{bits}:{rows}" for bits, rows in self.rows_by_width.items())
        shape = f"{_stored(self.rows)} x {_stored(self.columns)}"
        return f"{shape}, rows {widths}, A{self.activation_bits}, {self.kernel}"


def survey_kernels(
    layers: Iterable[LayerSpec], device: torch.device, dtype: torch.dtype, forced: str = AUTO
) -> list[LayerKernel]:
    """The kernel of each layer for inputs of this dtype on this device.

    Raises:
        ConfigurationError: See `select_kernel`.
    """
    return [_survey(layer, device, dtype, forced) for layer in layers]


def _survey(
    layer: LayerSpec, device: torch.device, dtype: torch.dtype, forced: str
) -> LayerKernel:
    choice = select_kernel(device, dtype, forced, layer.activation_bits)
    widths = {segment.bits: segment.rows for segment in layer.segments}
    if layer.stored_rows < layer.rows:
        widths[0] = layer.rows - layer.stored_rows
    reasons = [choice.reason, *_remarks(layer, widths)]
    return LayerKernel(
        name=layer.name,
        rows=(layer.rows, layer.stored_rows),
        columns=(layer.columns, layer.stored_columns),
        rows_by_width=widths,
        activation_bits=layer.activation_bits,
        kernel=choice.name,
        reason="; ".join(reasons),
    )


def _remarks(layer: LayerSpec, widths: dict[int, int]) -> list[str]:
    """What the shape and the widths of the layer change."""
    remarks = []
    if layer.activation_bits == 8 and widths.get(16):
        remarks.append("rows of 16 bits multiply the input unrounded")
    if any(segment.group_columns for segment in layer.segments):
        remarks.append("a sum for each 128 columns, as scales are of groups")
    if layer.stored_columns < layer.columns:
        remarks.append("reads some columns of the input only")
    if widths.get(0):
        remarks.append("rows of 0 bits answer the bias")
    return remarks


def _stored(size: tuple[int, int]) -> str:
    whole, stored = size
    return str(whole) if whole == stored else f"{whole}({stored})"
