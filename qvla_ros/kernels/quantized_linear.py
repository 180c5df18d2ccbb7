"""The module that takes the place of ``nn.Linear`` in a packed network."""

from collections.abc import Callable

import torch
from torch import nn

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.checkpoint.packed_segment import PackedSegment
from qvla_ros.errors import CheckpointError
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.selection import AUTO, KernelChoice, require_kernel, select_kernel


class QuantizedLinear(nn.Module):
    """``y = x · Wᵀ + bias`` with a packed weight; for inference only, it has no parameters.

    All its state is in buffers: ``segment<bits>_codes``, ``segment<bits>_scale``,
    ``segment<bits>_zero``, ``input_columns``, ``bias``, and the two orders of rows that a
    `LinearOperand` has. The packed tensors are held, not copied; ``row_order`` is a part of
    ``order``.

    Args:
        packed: The weight.
        bias: ``[rows]`` in canonical order, or ``None``.
        kernel_name: A kernel of ``selection.kernel_names()``, or ``"auto"``.

    Raises:
        ConfigurationError: The kernel is unknown or not built.
        ValueError: The bias is of a wrong shape.
    """

    order: torch.Tensor
    gather: torch.Tensor
    input_columns: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self, packed: PackedLinear, bias: torch.Tensor | None = None, kernel_name: str = AUTO
    ) -> None:
        super().__init__()
        require_kernel(kernel_name)
        self.layer_name = packed.name
        self.rows = packed.rows
        self.columns = packed.columns
        self.activation_bits = packed.activation_bits
        self.kernel_name = kernel_name
        self._widths = tuple(segment.bits for segment in packed.segments)
        for segment in packed.segments:
            prefix = f"segment{segment.bits}_"
            self.register_buffer(prefix + "codes", segment.codes)
            self.register_buffer(prefix + "scale", segment.scale)
            self.register_buffer(prefix + "zero", segment.zero)
        self.register_buffer("input_columns", packed.input_columns)
        self.register_buffer("bias", None if bias is None else bias.detach())
        operand = LinearOperand.prepare(packed, self.bias)
        self.register_buffer("order", operand.order)
        self.register_buffer("gather", operand.gather, persistent=False)
        self._in_order = operand.in_order
        self._stored_rows = packed.stored_rows
        self._choices: dict[tuple[torch.device, torch.dtype], KernelChoice] = {}
        self._operand: LinearOperand | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., columns]`` to ``[..., rows]`` in the dtype of ``x``."""
        if x.shape[-1] != self.columns:
            raise ValueError(
                f"{self.layer_name}: the input must end in {self.columns} columns, "
                f"not {list(x.shape)}"
            )
        flat = x.reshape(-1, self.columns)
        y = self.kernel_for(flat).function(flat, self.operand)
        return y.view(*x.shape[:-1], self.rows)

    def kernel_for(self, x: torch.Tensor) -> KernelChoice:
        """Which kernel multiplies ``x [batch, columns]``, and why."""
        choice = self._choices.get((x.device, x.dtype))
        if choice is None:
            choice = select_kernel(x.device, x.dtype, self.kernel_name, self.activation_bits)
            self._choices[x.device, x.dtype] = choice
        return choice

    @property
    def packed(self) -> PackedLinear:
        """The weight as it is now, on the device where it is."""
        return self.operand.packed

    @property
    def operand(self) -> LinearOperand:
        """The weight with its bias and orders; views of the buffers."""
        if self._operand is None:
            segments = tuple(
                PackedSegment(
                    bits,
                    *(
                        getattr(self, f"segment{bits}_{part}")
                        for part in ("codes", "scale", "zero")
                    ),
                )
                for bits in self._widths
            )
            packed = PackedLinear(
                self.layer_name,
                self.rows,
                self.columns,
                segments,
                self.order[: self._stored_rows],
                self.activation_bits,
                self.input_columns,
            )
            self._require_intact(packed)
            self._operand = LinearOperand(
                packed, self.bias, self.order, self.gather, self._in_order
            )
        return self._operand

    def hold(self, packed: PackedLinear) -> None:
        """Hold these tensors of the same values: e.g. views of what several layers share."""
        for segment in packed.segments:
            prefix = f"segment{segment.bits}_"
            setattr(self, prefix + "codes", segment.codes)
            setattr(self, prefix + "scale", segment.scale)
            setattr(self, prefix + "zero", segment.zero)
        self._operand = None

    def memory_bytes(self) -> int:
        """Bytes of all buffers: what the layer keeps in memory."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        bits = f"{self.packed.bits_per_weight:.2f} bits"
        return f"{self.columns} -> {self.rows}, {bits}, kernel={self.kernel_name}"

    def _require_intact(self, packed: PackedLinear) -> None:
        """A cast of the whole network, e.g. ``model.float()``, would have spoilt the scales."""
        try:
            packed.validate()
        except CheckpointError as error:
            raise ValueError(f"the network was cast or changed after loading: {error}") from error

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "QuantizedLinear":
        super()._apply(fn, recurse)
        self._operand = None  # the buffers may be other tensors now, e.g. after `.to(device)`
        return self
