# mypy: disable-error-code="no-untyped-def, misc"
"""Fused Triton kernels: one launch multiplies all widths of a layer, told apart by a tile table.

A program takes one tile of rows of one width and one block of tokens. It reads packed codes, makes
weights of them in registers (or leaves them integers), and multiplies. The weight is the first
operand of the product, so that on Hopper it need not pass through shared memory.

A row of the tile table is ``bits, first row in the segment, stored row, rows``.
"""

import triton
import triton.language as tl

_BLOCK = tl.constexpr(128)  # columns of a block of the packed format
_MAGIC = tl.constexpr(0x4B000000)  # the float 2^23: its low bits are an integer
_MAGIC_FLOAT = tl.constexpr(8388608.0)
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it rounds to integers, halves to even
_ROUNDING_BITS = tl.constexpr(0x4B400000)  # the same float
_VARYING = (
    "tokens",
    "columns",
    "stride",
    "whole_rows",
    "groups",
)  # must not compile anew for each


@triton.jit
def _codes(codes, row_bytes, row, block, split, mask, BITS: tl.constexpr, WIDTH: tl.constexpr):  # noqa: N803
    """Codes of ``WIDTH`` columns of a block, int32 ``[rows, WIDTH]``."""
    j = tl.arange(0, WIDTH)[None, :]
    base = codes + row.to(tl.int64)[:, None] * row_bytes + block * (_BLOCK * BITS // 8)
    if BITS == 8:
        q = tl.load(base + split * WIDTH + j, mask=mask[:, None], other=0).to(tl.int32)
    elif BITS == 4:
        q = tl.load(base + j, mask=mask[:, None], other=0).to(tl.int32) >> (4 * split) & 15
    else:
        q = tl.load(base + j, mask=mask[:, None], other=0).to(tl.int32) >> (2 * split) & 3
        if BITS == 3:
            high = tl.load(base + 32 + j % 16, mask=mask[:, None], other=0).to(tl.int32)
            q = q | (high >> (2 * split + j // 16) & 1) << 2
    return q


@triton.jit
def _input(x, tokens, token, width, column):
    """``[columns, tokens]`` of a row-major input, zeros outside of it."""
    there = (column < width)[:, None] & (token < tokens)[None, :]
    address = x + token.to(tl.int64)[None, :] * width + column[:, None]
    return tl.load(address, mask=there, other=0)


@triton.jit
def _grid(pointer, cell, mask):
    """A scale or a zero of each row of the tile, float32 ``[rows, 1]``."""
    return tl.load(pointer + cell, mask=mask, other=0).to(tl.float32)[:, None]


@triton.jit
def _floats(
    acc, x, tokens, token, width, codes, row_bytes, row, mask, scale, zero, cell,
    BITS: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Add the product with dequantized rows to ``acc [rows, tokens]``."""
    for block in range(tl.cdiv(width, _BLOCK)):
        at = cell + block if GROUPED else cell
        s = _grid(scale, at, mask)
        z = _grid(zero, at, mask)
        for split in tl.static_range(_BLOCK // WIDTH):
            q = _codes(codes, row_bytes, row, block, split, mask, BITS, WIDTH)
            # No conversion instruction: the code is planted into a float's lowest bits.
            value = (q | _MAGIC).to(tl.float32, bitcast=True) - _MAGIC_FLOAT
            weight = ((value - z) * s).to(x.dtype.element_ty)
            column = block * _BLOCK + split * WIDTH + tl.arange(0, WIDTH)
            part = _input(x, tokens, token, width, column)
            acc = tl.dot(weight, part, acc, input_precision="ieee")
    return acc


@triton.jit
def _integers(
    acc, x, sums, tokens, token, width, codes, row_bytes, row, mask, scale, zero, cell,
    BITS: tl.constexpr, WIDTH: tl.constexpr, GROUPED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``scale · (Σ qx·q - zero · Σ qx)`` of the tile, summed over groups."""
    product = tl.zeros(acc.shape, tl.int32)
    totals = sums + token * (tl.cdiv(width, _BLOCK) + 1)  # of the token, then of each block
    for block in range(tl.cdiv(width, _BLOCK)):
        for split in tl.static_range(_BLOCK // WIDTH):
            q = _codes(codes, row_bytes, row, block, split, mask, BITS, WIDTH)
            if BITS == 8:
                q = q - 128  # to fit signed bytes; the zero is shifted too
            column = block * _BLOCK + split * WIDTH + tl.arange(0, WIDTH)
            part = _input(x, tokens, token, width, column)
            product = tl.dot(q.to(tl.int8), part, product, out_dtype=tl.int32)
        if GROUPED:
            s = _grid(scale, cell + block, mask)
            z = _grid(zero, cell + block, mask) - (128 if BITS == 8 else 0)
            total = tl.load(totals + 1 + block, mask=token < tokens, other=0)
            # Below 2^22 in magnitude: planted like the codes, but signed.
            value = (product + _ROUNDING_BITS).to(tl.float32, bitcast=True) - _ROUNDING
            acc += s * (value - z * total[None, :])
            product = tl.zeros(acc.shape, tl.int32)
    if not GROUPED:
        s = _grid(scale, cell, mask)
        z = _grid(zero, cell, mask) - (128 if BITS == 8 else 0)
        total = tl.load(totals, mask=token < tokens, other=0)
        acc = s * (product.to(tl.float32) - z * total[None, :])
    return acc


@triton.jit
def _whole(acc, x, tokens, token, width, columns, weight, row, mask, WIDTH: tl.constexpr):  # noqa: N803
    """Add the product with 16-bit rows to ``acc [rows, tokens]``."""
    for start in range(0, columns, WIDTH):
        column = start + tl.arange(0, WIDTH)
        address = weight + row.to(tl.int64)[:, None] * columns + column[None, :]
        w = tl.load(address, mask=mask[:, None] & (column < columns)[None, :], other=0)
        part = _input(x, tokens, token, width, column)
        acc = tl.dot(w.to(x.dtype.element_ty), part, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=_VARYING)
def multiply_floats(
    x, y, weight16, codes8, codes4, codes3, codes2, scale, zero, tiles,
    tokens, width, columns, stride, whole_rows, groups,
    BLOCK_ROWS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, GROUPED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``y [tokens, rows] = x [tokens, columns] · Wᵀ``, the rows in stored order.

    ``x`` has ``width`` columns, those behind ``columns`` zeros: loads are wide if ``width`` is a
    multiple of 16. ``stride`` is from one token of ``y`` to the next.
    """
    tile = tiles + tl.program_id(0) * 4
    bits, first, stored = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    lane = tl.arange(0, BLOCK_ROWS)
    mask = lane < tl.load(tile + 3)
    row = first + lane
    cell = (stored - whole_rows + lane) * groups
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    padded = tl.cdiv(width, _BLOCK) * _BLOCK
    acc = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), tl.float32)
    if bits == 4:
        acc = _floats(acc, x, tokens, token, width, codes4, padded // 2, row, mask,
                      scale, zero, cell, 4, 64, GROUPED)  # fmt: skip
    elif bits == 2:
        acc = _floats(acc, x, tokens, token, width, codes2, padded // 4, row, mask,
                      scale, zero, cell, 2, 32, GROUPED)  # fmt: skip
    elif bits == 3:
        acc = _floats(acc, x, tokens, token, width, codes3, padded // 8 * 3, row, mask,
                      scale, zero, cell, 3, 32, GROUPED)  # fmt: skip
    elif bits == 8:
        acc = _floats(acc, x, tokens, token, width, codes8, padded, row, mask,
                      scale, zero, cell, 8, 64, GROUPED)  # fmt: skip
    else:
        acc = _whole(acc, x, tokens, token, width, columns, weight16, row, mask, 64)
    out = y + token.to(tl.int64)[None, :] * stride + (stored + lane)[:, None]
    there = mask[:, None] & (token < tokens)[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_VARYING)
def multiply_integers(
    x, rounded, input_scale, sums, y, weight16, codes8, codes4, codes3, codes2, scale, zero, tiles,
    tokens, width, columns, stride, whole_rows, groups,
    BLOCK_ROWS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, GROUPED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The same with ``rounded · input_scale`` for ``x``; rows of 16 bits multiply ``x`` itself."""
    tile = tiles + tl.program_id(0) * 4
    bits, first, stored = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    lane = tl.arange(0, BLOCK_ROWS)
    mask = lane < tl.load(tile + 3)
    row = first + lane
    cell = (stored - whole_rows + lane) * groups
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    padded = tl.cdiv(width, _BLOCK) * _BLOCK
    acc = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), tl.float32)
    if bits == 4:
        acc = _integers(acc, rounded, sums, tokens, token, width, codes4, padded // 2, row, mask,
                        scale, zero, cell, 4, 64, GROUPED)  # fmt: skip
    elif bits == 2:
        acc = _integers(acc, rounded, sums, tokens, token, width, codes2, padded // 4, row, mask,
                        scale, zero, cell, 2, 32, GROUPED)  # fmt: skip
    elif bits == 3:
        acc = _integers(acc, rounded, sums, tokens, token, width, codes3, padded // 8 * 3, row,
                        mask, scale, zero, cell, 3, 32, GROUPED)  # fmt: skip
    elif bits == 8:
        acc = _integers(acc, rounded, sums, tokens, token, width, codes8, padded, row, mask,
                        scale, zero, cell, 8, 64, GROUPED)  # fmt: skip
    else:
        acc = _whole(acc, x, tokens, token, width, columns, weight16, row, mask, 64)
    if bits != 16:
        acc = acc * tl.load(input_scale + token, mask=token < tokens, other=0)[None, :]
    out = y + token.to(tl.int64)[None, :] * stride + (stored + lane)[:, None]
    there = mask[:, None] & (token < tokens)[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=there)
