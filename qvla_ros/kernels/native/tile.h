// Step 2: the products of a chunk of rows, tile by tile: R rows by T registers of 16 tokens.

#pragma once

#include <algorithm>

#include "layer.h"

namespace {

// The scales and zeros of one group of columns.
struct Grid {
  const uint16_t *scale, *zero; // bfloat16, of the chunk's first row
  int64_t stride;               // elements from row to row
  const float *sums;            // Σ qx of each token
};

struct Tile {
  const uint8_t *weight; // [R][...], bfloat16 or codes
  int64_t weight_stride; // bytes
  const uint8_t *input;  // [T][...][16] words of 32 bits
  int64_t input_stride;  // bytes
  int64_t words;         // 32-bit words to multiply
  uint32_t *sum;         // [R][kSumStride] tokens, float or int32
  bool first;            // start from zeros
  Grid grid;             // null where there are no groups, or none to apply here
  int64_t rows;          // that there are; the tile's others are computed for nothing
};

struct Bf16 {
  using Register = __m512;
  static Register load(const uint32_t *p) { return _mm512_loadu_ps(p); }
  static void store(uint32_t *p, Register v) { _mm512_storeu_ps(p, v); }
  static Register multiply(Register sum, __m512i weight, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weight, (__m512bh)x);
  }
};

struct Int8 {
  using Register = __m512i;
  static Register load(const uint32_t *p) { return _mm512_loadu_si512(p); }
  static void store(uint32_t *p, Register v) { _mm512_storeu_si512(p, v); }
  static Register multiply(Register sum, __m512i weight, __m512i x) {
    return _mm512_dpbusd_epi32(sum, weight, x);
  }
};

// Not inlined: all registers are its own.
template <class Kind, int R, int T>
__attribute__((noinline)) void multiply_tile(const Tile &t, uint32_t *out, int64_t stride,
                                             bool first) {
  typename Kind::Register sum[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j)
      sum[r][j] = first ? typename Kind::Register{} : Kind::load(out + r * stride + j * kLanes);
  const uint8_t *weight = t.weight, *input = t.input;
  const int64_t words = t.words, weight_stride = t.weight_stride, input_stride = t.input_stride;
  for (int64_t word = 0; word < words; ++word) {
    __m512i x[T];
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j)
      x[j] = _mm512_loadu_si512(input + j * input_stride + word * kLine);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t codes;
      memcpy(&codes, weight + r * weight_stride + word * 4, 4);
      const __m512i w = _mm512_set1_epi32(codes);
#pragma GCC unroll 4
      for (int j = 0; j < T; ++j) sum[r][j] = Kind::multiply(sum[r][j], w, x[j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) Kind::store(out + r * stride + j * kLanes, sum[r][j]);
}

// One group of columns: its integers are below 2^24, so float holds them, and one rounding takes
// the zero off.
template <int R, int T> void multiply_group(const Tile &t) {
  alignas(64) uint32_t sum[R * T * kLanes];
  multiply_tile<Int8, R, T>(t, sum, T * kLanes, true);
  for (int r = 0; r < std::min<int64_t>(R, t.rows); ++r) {
    const __m512 scale = _mm512_set1_ps(to_float(t.grid.scale[r * t.grid.stride]));
    const __m512 zero = _mm512_set1_ps(to_float(t.grid.zero[r * t.grid.stride]));
    for (int j = 0; j < T; ++j) {
      float *total = (float *)t.sum + r * kSumStride + j * kLanes;
      const __m512 product = _mm512_cvtepi32_ps(Int8::load(sum + (r * T + j) * kLanes));
      const __m512 part =
          _mm512_fnmadd_ps(zero, _mm512_loadu_ps(t.grid.sums + j * kLanes), product);
      _mm512_storeu_ps(total, t.first ? _mm512_mul_ps(scale, part)
                                      : _mm512_fmadd_ps(scale, part, _mm512_loadu_ps(total)));
    }
  }
}

template <class Kind, int R, int T> void multiply(const Tile &t) {
  if (t.grid.scale)
    multiply_group<R, T>(t);
  else
    multiply_tile<Kind, R, T>(t, t.sum, kSumStride, t.first);
}

// All rows by `blocks` registers of tokens, in tiles that fill the 32 registers.
template <class Kind> void multiply_chunk(Tile tile, int64_t blocks) {
  for (int64_t block = 0; block < blocks; block += 4) {
    const int64_t width = std::min<int64_t>(4, blocks - block);
    const int step = width == 4 ? 6 : width == 3 ? 8 : 12;
    Tile part = tile;
    part.input += block * tile.input_stride;
    part.sum += block * kLanes;
    if (part.grid.scale) part.grid.sums += block * kLanes;
    for (; part.rows > 0; part.rows -= step) {
      switch (width) {
      case 4: multiply<Kind, 6, 4>(part); break;
      case 3: multiply<Kind, 8, 3>(part); break;
      case 2: multiply<Kind, 12, 2>(part); break;
      default: multiply<Kind, 12, 1>(part);
      }
      part.weight += step * tile.weight_stride;
      part.sum += step * kSumStride;
      if (!part.grid.scale) continue;
      part.grid.scale += step * tile.grid.stride;
      part.grid.zero += step * tile.grid.stride;
    }
  }
}

} // namespace
