// The product for at most four tokens, where reading the weight takes longest: row by row, with the
// columns in the registers' lanes.

#pragma once

#include <algorithm>

#include "input.h"
#include "layer.h"
#include "weight.h"

namespace {

constexpr int kFewTokens = 4;
constexpr int kSums = 4; // independent sums of a token, so that none waits for the one before

// Row-major inputs in the buffers of step 1; tokens that are not there are zeros.
void pack_few(const Work &w, bool integers) {
  uint16_t *rows = (uint16_t *)w.pairs;
  int8_t *rounded = (int8_t *)w.quads;
  memset(rows, 0, kFewTokens * w.columns * 2);
  if (integers) memset(rounded, 0, kFewTokens * w.columns);
  for (int64_t token = 0; token < w.tokens; ++token) {
    gather_token(w, token, rows + token * w.columns);
    if (integers)
      round_token(w, token, rows + token * w.columns, rounded + token * w.columns);
  }
}

template <int N> void few_floats(const Work &w, const Segment &s, int64_t row, float *out) {
  alignas(64) uint16_t weight[kColumns];
  __m512 sum[N][kSums] = {};
  for (int64_t k = 0; k < w.columns; k += kColumns) {
    const int64_t count = std::min<int64_t>(kColumns, w.columns - k);
    if (s.bits == 16)
      copy_weights(s, row, w.layer->stored_columns, k, count, weight);
    else
      unpack_values(s, row, w.columns * s.bits / 8, k, count, weight);
    for (int64_t i = 0; i < count; i += kBlockColumns)
      for (int j = 0; j < kSums; ++j) {
        const __m512i v = _mm512_load_si512(weight + i + 32 * j);
        for (int t = 0; t < N; ++t) {
          const uint16_t *x = (const uint16_t *)w.pairs + t * w.columns + k + i + 32 * j;
          sum[t][j] =
              _mm512_dpbf16_ps(sum[t][j], (__m512bh)v, (__m512bh)_mm512_loadu_si512(x));
        }
      }
  }
  for (int t = 0; t < N; ++t)
    out[t] = _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]), _mm512_add_ps(sum[t][2], sum[t][3])));
}

template <int N> void few_integers(const Work &w, const Segment &s, int64_t row, float *out) {
  alignas(64) uint8_t codes[kColumns];
  const uint16_t *scale = s.scale + row * s.groups, *zero = s.zero + row * s.groups;
  __m512i sum[N][2] = {};
  __m512 total[N] = {};
  float offset[N] = {};
  for (int64_t k = 0; k < w.columns; k += kColumns) {
    const int64_t count = std::min<int64_t>(kColumns, w.columns - k);
    unpack_codes(s, row, w.columns * s.bits / 8, k, count, codes);
    for (int64_t i = 0; i < count; i += kBlockColumns) {
      for (int j = 0; j < 2; ++j) {
        const __m512i v = _mm512_load_si512(codes + i + 64 * j);
        for (int t = 0; t < N; ++t)
          sum[t][j] = _mm512_dpbusd_epi32(
              sum[t][j], v, _mm512_loadu_si512(w.quads + t * w.columns + k + i + 64 * j));
      }
      if (s.groups == 1) continue;
      const int64_t group = (k + i) / kBlockColumns;
      const float factor = to_float(scale[group]);
      for (int t = 0; t < N; ++t) {
        const __m512 part = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[t][0], sum[t][1]));
        total[t] = _mm512_fmadd_ps(_mm512_set1_ps(factor), part, total[t]);
        const float of_token = w.group_sums[group * w.blocks * kLanes + t];
        offset[t] += factor * (to_float(zero[group]) * of_token);
        sum[t][0] = sum[t][1] = _mm512_setzero_si512();
      }
    }
  }
  for (int t = 0; t < N; ++t) {
    if (s.groups > 1) {
      out[t] = w.scale[t] * (_mm512_reduce_add_ps(total[t]) - offset[t]);
      continue;
    }
    const int32_t product = _mm512_reduce_add_epi32(_mm512_add_epi32(sum[t][0], sum[t][1]));
    const float offset_zero = to_float(zero[0]);
    const int32_t whole = whole_zero(offset_zero);
    const float part = float(product - whole * w.sums[t]) -
                       (offset_zero - float(whole)) * float(w.sums[t]);
    out[t] = w.scale[t] * (to_float(scale[0]) * part);
  }
}

template <int N> void few_rows(const Work &w, const Segment &s, int64_t row, int64_t stored_row) {
  float out[N];
  if (w.layer->activation_bits == 8 && s.bits < 16)
    few_integers<N>(w, s, row, out);
  else
    few_floats<N>(w, s, row, out);
  const int64_t canonical = w.layer->order[stored_row];
  const float bias = w.layer->bias ? to_float(w.layer->bias[canonical]) : 0.0f;
  for (int64_t t = 0; t < std::min<int64_t>(N, w.tokens); ++t) {
    const __m512i rounded = round_bf16(_mm512_set1_ps(out[t] + bias));
    w.y[t * w.layer->rows + canonical] = uint16_t(_mm512_cvtsi512_si32(rounded));
  }
}

// One stored row by all tokens.
void multiply_few(const Work &w, const Segment &s, int64_t row, int64_t stored_row) {
  if (w.tokens == 1)
    few_rows<1>(w, s, row, stored_row);
  else if (w.tokens == 2)
    few_rows<2>(w, s, row, stored_row);
  else
    few_rows<kFewTokens>(w, s, row, stored_row);
}

void fill_pruned_few(const Work &w) {
  for (int64_t row = w.layer->stored_rows; row < w.layer->rows; ++row) {
    const int64_t canonical = w.layer->order[row];
    for (int64_t t = 0; t < w.tokens; ++t)
      w.y[t * w.layer->rows + canonical] = w.layer->bias ? w.layer->bias[canonical] : 0;
  }
}

} // namespace
