"""Codes of 2, 3, 4 and 8 bits in bytes, in *split order* inside blocks of 128 columns.

A block of 128 columns is one *plane* of all the bits of a code, except at 3 bits: there it is a
plane of the low two bits followed by a plane of the high one. A plane of ``bits`` takes
``stride = 128 * bits / 8`` bytes, and byte ``j`` of the plane holds the columns ``j``,
``j + stride``, ``j + 2 * stride``, ... from its low bits to its high bits. So unpacking one
contiguous run of columns is one shift and one mask over one contiguous run of bytes.
"""

import torch

BLOCK_COLUMNS = 128
"""Columns in one block; the last block of a row is padded with the code 0."""

CODE_BITS = (8, 4, 3, 2)
"""Widths that are stored as codes, widest first."""

_PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}  # bits of each plane, from the lowest bit


def padded_columns(columns: int) -> int:
    """``columns`` rounded up to a whole number of blocks."""
    return -(-columns // BLOCK_COLUMNS) * BLOCK_COLUMNS


def packed_bytes_per_row(columns: int, bits: int) -> int:
    """Bytes that one row of ``columns`` codes of ``bits`` bits takes, padding included."""
    _require_code_bits(bits)
    return padded_columns(columns) * bits // 8


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer codes into bytes.

    Args:
        codes: ``uint8 [rows, columns]``, each at most ``2**bits - 1``.
        bits: 2, 3, 4 or 8.

    Returns:
        ``uint8 [rows, packed_bytes_per_row(columns, bits)]``.

    Raises:
        ValueError: The width is not one of these, or a code does not fit it.
    """
    _require_code_bits(bits)
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"codes must be uint8 [rows, columns], not {codes.dtype} {codes.shape}")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"a code of {int(codes.max())} does not fit {bits} bits")
    rows, columns = codes.shape
    padded = codes.new_zeros(rows, padded_columns(columns))
    padded[:, :columns] = codes
    packed = codes.new_zeros(rows, packed_bytes_per_row(columns, bits))
    for plane, low, width in _plane_views(packed, bits):
        splits = _split_view(padded, width)
        for split in range(8 // width):
            plane |= (splits[:, :, split] >> low & 2**width - 1) << split * width
    return packed


def unpack_codes(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Undo :func:`pack_codes`.

    Args:
        packed: ``uint8 [rows, packed_bytes_per_row(columns, bits)]``.
        bits: 2, 3, 4 or 8.
        columns: True number of columns, without padding.

    Returns:
        ``uint8 [rows, columns]``.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise ValueError(f"packed must be uint8 [rows, bytes], not {packed.dtype} {packed.shape}")
    if packed.shape[1] != packed_bytes_per_row(columns, bits):
        raise ValueError(
            f"{columns} columns of {bits} bits take {packed_bytes_per_row(columns, bits)} bytes "
            f"a row, not {packed.shape[1]}"
        )
    codes = packed.new_empty(packed.shape[0], padded_columns(columns))
    unpack_into(packed, bits, codes)
    return codes[:, :columns]


def unpack_into(packed: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Unpack into a buffer that the caller owns; only 3 bits take a small buffer of their own.

    Args:
        packed: ``uint8 [rows, padded_columns * bits / 8]``.
        bits: 2, 3, 4 or 8.
        codes: Contiguous ``uint8 [rows, padded_columns]``; overwritten.
    """
    if bits == 8:
        codes.copy_(packed)
        return
    # Eight bytes at a time: a plane has at least 16, and the mask clears what the shift of a
    # 64-bit word brings in from the neighbours.
    for plane, low, width in _plane_views(packed, bits):
        words, targets = plane.view(torch.int64), _split_view(codes, width).view(torch.int64)
        mask = int.from_bytes(bytes([2**width - 1]) * 8, "little")
        for split in range(8 // width):
            target = targets[:, :, split]
            if low:
                target |= (words >> split * width & mask) << low
            else:
                torch.bitwise_right_shift(words, split * width, out=target)
                target &= mask


def _plane_views(packed: torch.Tensor, bits: int) -> list[tuple[torch.Tensor, int, int]]:
    """Of each plane: its bytes ``[rows, blocks, bytes]``, its lowest bit and its width."""
    block_bytes = BLOCK_COLUMNS * bits // 8
    blocks = packed.view(packed.shape[0], packed.shape[1] // block_bytes, block_bytes)
    views = []
    low = 0
    for width in _PLANES[bits]:
        first, last = (BLOCK_COLUMNS * bit // 8 for bit in (low, low + width))
        views.append((blocks[:, :, first:last], low, width))
        low += width
    return views


def _split_view(codes: torch.Tensor, width: int) -> torch.Tensor:
    """``[rows, padded_columns]`` seen as ``[rows, blocks, codes a byte, bytes a plane]``."""
    rows, columns = codes.shape
    stride = BLOCK_COLUMNS * width // 8
    return codes.view(rows, columns // BLOCK_COLUMNS, 8 // width, stride)


def _require_code_bits(bits: int) -> None:
    if bits not in CODE_BITS:
        raise ValueError(f"codes are of 2, 3, 4 or 8 bits, not {bits}")
