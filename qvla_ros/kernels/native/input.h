// Step 1: the input repacked, 16 tokens in a register.

#pragma once

#include "layer.h"
#include <algorithm>

namespace {

// The stored columns of one token, zeros in the padding.
void gather_token(const Work &w, int64_t token, uint16_t *out) {
  const Layer &layer = *w.layer;
  const uint16_t *x = w.x + token * layer.columns;
  const int64_t kept = layer.stored_columns;
  if (layer.input_columns)
    for (int64_t k = 0; k < kept; ++k) out[k] = x[layer.input_columns[k]];
  else
    memcpy(out, x, kept * 2);
  memset(out + kept, 0, (w.columns - kept) * 2);
}

void round_token(const Work &w, int64_t token, const uint16_t *in, int8_t *out) {
  __m512i largest = _mm512_setzero_si512(); // as integers, so that a NaN is the largest
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const auto load = [&](int64_t k) {
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + k))),
                             16);
  };
  for (int64_t k = 0; k < w.columns; k += 16)
    largest = _mm512_max_epu32(largest, _mm512_and_si512(load(k), magnitude));
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float scale;
  memcpy(&scale, &bits, 4);
  scale /= 127.0f;
  if (scale < kTiny) scale = kTiny; // false for NaN
  w.scale[token] = scale;
  const __m512 divisor = _mm512_set1_ps(scale);
  const int64_t padded = w.blocks * kLanes;
  int32_t total = 0;
  for (int64_t group = 0; group < w.groups; ++group) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = group * kBlockColumns; k < (group + 1) * kBlockColumns; k += 16) {
      const __m512i q =
          _mm512_cvtps_epi32(_mm512_div_ps(_mm512_castsi512_ps(load(k)), divisor));
      sum = _mm512_add_epi32(sum, q);
      _mm_storeu_si128((__m128i *)(out + k), _mm512_cvtsepi32_epi8(q));
    }
    const int32_t part = _mm512_reduce_add_epi32(sum);
    w.group_sums[group * padded + token] = float(part);
    total += part;
  }
  w.sums[token] = total;
}

// 16 rows of 32-bit words to words of 16 lanes.
void interleave(const uint8_t *rows, int64_t row_bytes, uint8_t *out) {
  for (int64_t at = 0; at < row_bytes; at += 64) {
    __m512i v[16];
    for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(rows + i * row_bytes + at);
    transpose(v);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + at * 16 + i * 64, v[i]);
  }
}

void pack_input(const Work &w, int64_t block, bool pairs, bool quads, uint8_t *scratch) {
  uint16_t *rows = (uint16_t *)scratch;
  int8_t *integers = (int8_t *)(scratch + kLanes * w.columns * 2);
  const int64_t padded = w.blocks * kLanes;
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t token = block * kLanes + i;
    if (token < w.tokens) {
      gather_token(w, token, rows + i * w.columns);
      if (quads) round_token(w, token, rows + i * w.columns, integers + i * w.columns);
      continue;
    }
    memset(rows + i * w.columns, 0, w.columns * 2);
    if (!quads) continue;
    memset(integers + i * w.columns, 0, w.columns);
    w.scale[token] = 0;
    w.sums[token] = 0;
    for (int64_t group = 0; group < w.groups; ++group) w.group_sums[group * padded + token] = 0;
  }
  const int64_t row_bytes = w.columns * 2;
  if (pairs) interleave((const uint8_t *)rows, row_bytes, w.pairs + block * kLanes * row_bytes);
  if (quads)
    interleave((const uint8_t *)integers, w.columns, w.quads + block * kLanes * w.columns);
}

} // namespace
