# mypy: disable-error-code="no-untyped-def, misc"
"""The elementwise steps between the products, in Triton: each puts stored rows into order as it reads.

One program has one token, whose columns all are in registers; so the norm, the largest value and
the rounding to 8 bits need no second pass.
"""

import triton
import triton.language as tl

_BLOCK = tl.constexpr(128)  # columns of a block of the packed format
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it rounds to integers, halves to even
_VARYING = ("stride", "length")  # must not compile anew for each
_ROOT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _gather(y, source, bias, column, there, BIAS: tl.constexpr):  # noqa: N803
    """Values of one row of the product in the order of ``source``, 0 where that is negative."""
    at = tl.load(source + column, mask=there, other=-1)
    value = tl.load(y + at, mask=at >= 0, other=0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + column, mask=there, other=0).to(tl.float32)
    return value


@triton.jit
def _round(value, token, rounded, input_scale, sums, columns, tiny, LANES: tl.constexpr):  # noqa: N803
    """One token to int8; its scale; the sum of its integers and those of each block."""
    poison = tl.sum(value * 0.0, 0)  # NaN if a value is not finite, which `max` may miss
    step = tl.maximum(tl.div_rn(tl.max(tl.abs(value), 0), 127.0), tiny) + poison
    tl.store(input_scale + token, step)
    q = tl.div_rn(value, step) + _ROUNDING - _ROUNDING
    column = tl.arange(0, LANES)
    tl.store(rounded + token * columns + column, q.to(tl.int8), mask=column < columns)
    part = tl.sum(tl.reshape(q, (LANES // _BLOCK, _BLOCK)), 1)
    blocks = tl.cdiv(columns, _BLOCK)
    block = tl.arange(0, LANES // _BLOCK)
    row = sums + token * (blocks + 1)
    tl.store(row + 1 + block, part, mask=block < blocks)
    tl.store(row, tl.sum(q, 0))


@triton.jit(do_not_specialize=_VARYING)
def activate_tokens(
    y, source, bias, second, second_bias, out, rounded, input_scale, sums, columns, stride, tiny,
    FUNCTION: tl.constexpr, BIAS: tl.constexpr, ROUND: tl.constexpr, LANES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``out = function(product)``; 0 is the identity, 1 GELU (erf), 2 SwiGLU."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, LANES)
    there = column < columns
    row = y + token * stride
    value = _gather(row, source, bias, column, there, BIAS)
    if FUNCTION == 1:
        value = 0.5 * value * (1.0 + tl.erf(value * _ROOT_HALF))
    elif FUNCTION == 2:
        other = _gather(row, second, second_bias, column, there, BIAS)
        value = value / (1.0 + tl.exp(-value)) * other
    result = value.to(out.dtype.element_ty)
    tl.store(out + token * columns + column, result, mask=there)
    if ROUND:
        exact = tl.where(there, result.to(tl.float32), 0.0)
        _round(exact, token, rounded, input_scale, sums, columns, tiny, LANES)


@triton.jit(do_not_specialize=_VARYING)
def add_norm_tokens(
    residual, y, source, bias, factor, weight, shift, total, out, rounded, input_scale, sums,
    columns, stride, share, eps, tiny,
    BIAS: tl.constexpr, FACTOR: tl.constexpr, CENTRED: tl.constexpr, ROUND: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``total = residual + factor · product``, ``out = norm(total)``; ``share`` is 1 / columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, LANES)
    there = column < columns
    at = token * columns + column
    added = _gather(y + token * stride, source, bias, column, there, BIAS)
    if FACTOR:
        added *= tl.load(factor + column, mask=there, other=0).to(tl.float32)
    value = tl.load(residual + at, mask=there, other=0).to(tl.float32) + added
    stored = value.to(total.dtype.element_ty)
    tl.store(total + at, stored, mask=there)
    value = stored.to(tl.float32)
    if CENTRED:
        value = tl.where(there, value - tl.sum(value, 0) * share, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, 0) * share + eps)
    value *= tl.load(weight + column, mask=there, other=0).to(tl.float32)
    if CENTRED:
        value += tl.load(shift + column, mask=there, other=0).to(tl.float32)
    result = value.to(out.dtype.element_ty)
    tl.store(out + at, result, mask=there)
    if ROUND:
        _round(result.to(tl.float32), token, rounded, input_scale, sums, columns, tiny, LANES)


@triton.jit(do_not_specialize=_VARYING)
def rotate_heads(
    y, source, bias, cosines, sines, out, stride, length, heads, rotated, size,
    BIAS: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``HEADS`` heads of one token, the first ``rotated`` of all turned by their position."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    there = (head < heads) & (lane < size)
    turned = there & (head < rotated)
    row = y + token * stride
    value = _gather(row, source, bias, head * size + lane, there, BIAS)
    low = lane < size // 2
    partner = tl.where(low, lane + size // 2, lane - size // 2)
    other = _gather(row, source, bias, head * size + partner, turned, BIAS)
    at = token % length * size + lane
    cosine = tl.load(cosines + at, mask=turned, other=1).to(tl.float32)
    sine = tl.load(sines + at, mask=turned, other=0).to(tl.float32)
    value = value * cosine + tl.where(low, -other, other) * sine
    tl.store(
        out + (token * heads + head) * size + lane, value.to(out.dtype.element_ty), mask=there
    )
