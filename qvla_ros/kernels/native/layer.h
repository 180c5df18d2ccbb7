// The packed layer as Python describes it, one product's buffers, and small arithmetic.

#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = 16;         // tokens in a register
constexpr int kBlockColumns = 128; // of the packed format
constexpr int kColumns = 512;      // columns unpacked together
constexpr int kTokens = 512;       // tokens multiplied by one unpacked chunk
constexpr int kChunkRows = 96;     // rows unpacked together; a multiple of every tile's rows
constexpr int kLine = 64;          // of the cache; rows one line apart do not evict each other
constexpr int kSumStride = kTokens + kLine / 4;
constexpr float kTiny = 1.17549435e-38f;

struct Segment {
  int32_t bits, rows, groups, reserved; // groups: scales of a row, 1 or one for each 128 columns
  const uint8_t *codes;
  const uint16_t *scale, *zero; // bfloat16
};

struct Layer {
  int32_t rows, columns, stored_rows, stored_columns, activation_bits, segment_count;
  const int32_t *input_columns; // or null
  const int32_t *gather;        // canonical row -> row of the concatenated segments
  const int32_t *order;         // its inverse
  const uint16_t *bias;         // bfloat16 in canonical order, or null
  const Segment *segments;
};

float to_float(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// Round to the nearest bfloat16, halves to even. The processor's own instruction flushes
// subnormal numbers, and the reference does not.
__m512i round_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
}

// The part of a zero that is taken off integers, where it cancels exactly.
int32_t whole_zero(float zero) { return int32_t(zero < 0 ? 0 : zero > 255 ? 255 : zero); }

void transpose(__m512i v[16]) { // 16 x 16 words of 32 bits
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    v[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

// One product's buffers and sizes.
struct Work {
  const Layer *layer;
  const uint16_t *x; // bfloat16 [tokens][columns]
  uint16_t *y;       // bfloat16 [tokens][rows]
  int64_t tokens, blocks, columns, groups; // blocks of 16 tokens; columns are padded to 128
  uint8_t *pairs;   // [blocks][columns / 2][16] pairs of bfloat16
  uint8_t *quads;   // [blocks][columns / 4][16] four int8
  float *scale;     // [blocks * 16]
  int32_t *sums;    // [blocks * 16]: of a token's integers
  float *group_sums; // [groups][blocks * 16]: of each 128 columns
  uint16_t *result; // bfloat16 [rows][blocks * 16], rows in stored order
};

} // namespace
