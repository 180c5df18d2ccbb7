// Step 2: columns of a packed row to bfloat16, or to bare codes.

#pragma once

#include "layer.h"
#include <algorithm>

namespace {

// The 128 codes of one block of a row of at most 4 bits, in order.
void unpack_block(const uint8_t *packed, int bits, __m512i &low, __m512i &high) {
  if (bits == 4) {
    const __m512i v = _mm512_loadu_si512(packed), mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(v, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
    return;
  }
  const __m512i v =
      _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)packed)); // 32 bytes, twice
  const __m512i mask = _mm512_set1_epi8(3);
  const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
  low = _mm512_and_si512(_mm512_srlv_epi16(v, shift), mask);
  high = _mm512_and_si512(
      _mm512_srlv_epi16(v, _mm512_add_epi16(shift, _mm512_set1_epi16(4))), mask);
  if (bits == 2) return;
  const __m512i top = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(packed + 32)));
  __m512i at = _mm512_setzero_si512(); // each 16 bytes hold the next bit
  at = _mm512_inserti32x4(at, _mm_set1_epi16(1), 1);
  at = _mm512_inserti32x4(at, _mm_set1_epi16(2), 2);
  at = _mm512_inserti32x4(at, _mm_set1_epi16(3), 3);
  const __m512i one = _mm512_set1_epi8(1);
  const __m512i first = _mm512_and_si512(_mm512_srlv_epi16(top, at), one);
  const __m512i second = _mm512_and_si512(
      _mm512_srlv_epi16(top, _mm512_add_epi16(at, _mm512_set1_epi16(4))), one);
  low = _mm512_or_si512(low, _mm512_slli_epi16(first, 2));
  high = _mm512_or_si512(high, _mm512_slli_epi16(second, 2));
}

// A row's value of each code, 16 words of 16 bits, twice.
__m512i value_table(float scale, float zero) {
  const __m512 q =
      _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512 value =
      _mm512_mul_ps(_mm512_sub_ps(q, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
  return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(round_bf16(value)));
}

// The next columns of the row are needed only after a whole chunk has been multiplied, and the
// processor does not foresee where they are.
void prefetch(const uint8_t *begin, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)begin + i, _MM_HINT_T1);
}

// Columns `first` to `first + count` of a row of codes to bfloat16.
void unpack_values(const Segment &s, int64_t row, int64_t row_bytes, int64_t first,
                   int64_t count, uint16_t *out) {
  const uint8_t *codes = s.codes + row * row_bytes;
  prefetch(codes + (first + count) * s.bits / 8, count * s.bits / 8);
  __m512i table = _mm512_setzero_si512();
  float scale = 0, zero = 0;
  for (int64_t k = 0; k < count; k += kBlockColumns) {
    const int64_t block = (first + k) / kBlockColumns;
    if (k == 0 || s.groups > 1) {
      const int64_t cell = row * s.groups + (s.groups > 1 ? block : 0);
      scale = to_float(s.scale[cell]);
      zero = to_float(s.zero[cell]);
      if (s.bits < 8) table = value_table(scale, zero);
    }
    if (s.bits == 8) {
      for (int j = 0; j < kBlockColumns; j += 16) {
        const __m128i q = _mm_loadu_si128((const __m128i *)(codes + first + k + j));
        const __m512 value = _mm512_mul_ps(
            _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q)), _mm512_set1_ps(zero)),
            _mm512_set1_ps(scale));
        _mm256_storeu_si256((__m256i *)(out + k + j), _mm512_cvtepi32_epi16(round_bf16(value)));
      }
      continue;
    }
    __m512i part[2];
    unpack_block(codes + block * kBlockColumns * s.bits / 8, s.bits, part[0], part[1]);
    for (int i = 0; i < 2; ++i) {
      const __m512i a = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(part[i]));
      const __m512i b = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(part[i], 1));
      _mm512_storeu_si512(out + k + 64 * i, _mm512_permutexvar_epi16(a, table));
      _mm512_storeu_si512(out + k + 64 * i + 32, _mm512_permutexvar_epi16(b, table));
    }
  }
}

void unpack_codes(const Segment &s, int64_t row, int64_t row_bytes, int64_t first, int64_t count,
                  uint8_t *out) {
  const uint8_t *codes = s.codes + row * row_bytes;
  prefetch(codes + (first + count) * s.bits / 8, count * s.bits / 8);
  if (s.bits == 8) {
    memcpy(out, codes + first, count);
    return;
  }
  for (int64_t k = 0; k < count; k += kBlockColumns) {
    const int64_t block = (first + k) / kBlockColumns;
    __m512i low, high;
    unpack_block(codes + block * kBlockColumns * s.bits / 8, s.bits, low, high);
    _mm512_storeu_si512(out + k, low);
    _mm512_storeu_si512(out + k + 64, high);
  }
}

void copy_weights(const Segment &s, int64_t row, int64_t stored_columns, int64_t first,
                  int64_t count, uint16_t *out) {
  const uint16_t *weights = (const uint16_t *)s.codes + row * stored_columns + first;
  const int64_t there = std::min(count, stored_columns - first);
  memcpy(out, weights, there * 2);
  memset(out + there, 0, (count - there) * 2);
}

} // namespace
