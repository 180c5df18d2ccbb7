"""What a row costs at each width, in bits, bytes or picoseconds, and what may be spent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qvla_ros.checkpoint.bitpack import packed_bytes_per_row
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.latency_table import LatencyTable
from qvla_ros.quantize.widths import WIDTHS

_ROW_ORDER = 4  # bytes of a stored row's place in the row order
_GRID = 4  # bytes of one BF16 scale and zero
_INPUT_COLUMN = 4  # bytes of one kept column's index
_PICOSECONDS = 1_000_000_000  # a millisecond


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Costs of all rows in one unit.

    Attributes:
        cost: ``int64 [rows, len(WIDTHS)]``.
        limit: Of the sum; what is spent whatever the widths is taken off already.
    """

    cost: np.ndarray
    limit: int


def row_bytes(columns: int, bits: int, group_columns: int | None = None) -> int:
    """Bytes that one row of ``columns`` stored weights takes in a checkpoint.

    Args:
        columns: Columns that are stored.
        bits: Width of the row.
        group_columns: Columns that share a scale and a zero; ``None``: the whole row.
    """
    if bits == 0:
        return 0
    if bits == 16:
        return 2 * columns + _ROW_ORDER
    groups = 1 if group_columns is None else -(-columns // group_columns)
    return packed_bytes_per_row(columns, bits) + _GRID * groups + _ROW_ORDER


def bit_costs(
    layers: Sequence[LinearLayer], average_bits: float, kept: Mapping[str, int]
) -> RowCosts:
    """Bits of codes; removed columns count as weights of no bits.

    Args:
        layers: In the order of the rows.
        average_bits: Limit a weight.
        kept: Layer name to the number of stored columns, where some are removed.
    """
    columns = _a_row(layers, [kept.get(layer.name, layer.columns) for layer in layers])
    weights = sum(layer.weights for layer in layers)
    return RowCosts(columns[:, None] * np.asarray(WIDTHS), int(average_bits * weights))


def mean_bit_costs(layers: Sequence[LinearLayer], average_bits: float) -> RowCosts:
    """Bits a *row*, however long it is: the budget of QVLA's public code."""
    rows = sum(layer.rows for layer in layers)
    return RowCosts(np.tile(np.asarray(WIDTHS), (rows, 1)), int(average_bits * rows))


def byte_costs(
    layers: Sequence[LinearLayer],
    max_bytes: int,
    kept: Mapping[str, int],
    group_columns: Mapping[str, int],
) -> RowCosts:
    """Bytes in the file: codes, scales, row orders, and the lists of kept columns."""
    tables = [
        [
            row_bytes(kept.get(one.name, one.columns), bits, group_columns.get(one.name))
            for bits in WIDTHS
        ]
        for one in layers
    ]
    return RowCosts(_a_row(layers, tables), max_bytes - _INPUT_COLUMN * sum(kept.values()))


def latency_costs(
    layers: Sequence[LinearLayer],
    max_ms: float,
    kept: Mapping[str, int],
    table: LatencyTable,
    widths: tuple[int, ...],
    activation_bits: Mapping[str, int],
) -> RowCosts:
    """Picoseconds an inference; a row's time is taken as proportional to its stored columns.

    Raises:
        ConfigurationError: The table lacks a layer, or a width of ``widths``.
    """
    spent, tables = table.other_ms, []
    for one in layers:
        entry = table.of(one, activation_bits.get(one.name, 16))
        share = kept.get(one.name, one.columns) / one.columns
        spent += entry.fixed_ms
        tables.append(
            [
                int(np.ceil(entry.of_width(bits) * share * _PICOSECONDS)) if bits in widths else 0
                for bits in WIDTHS
            ]
        )
    return RowCosts(_a_row(layers, tables), int((max_ms - spent) * _PICOSECONDS))


def _a_row(layers: Sequence[LinearLayer], values: Sequence[object]) -> np.ndarray:
    """Repeat each layer's value for each of its rows."""
    return np.repeat(np.asarray(values, dtype=np.int64), [layer.rows for layer in layers], axis=0)
