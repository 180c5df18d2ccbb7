// y = x · Wᵀ + bias with a packed weight, for x86 processors with AVX-512 VNNI and BF16.
//
// The way of one product:
//   1. The input is repacked so that one register holds 16 tokens: pairs of bfloat16, or, for
//      8-bit activations, four int8 (rounded here, token by token).
//   2. Chunks of rows are unpacked into a small buffer, row-major: to bfloat16 by a table lookup
//      of the row's 4, 8 or 16 values (so they are the reference's bit for bit), or to the bare
//      codes. One element of the buffer is broadcast, and multiplies 64 tokens.
//   3. The results, one stored row after the other, are transposed into the output's order of
//      tokens and canonical rows.
//
// Interface: qvla_linear and qvla_scratch_bytes at the end, called by kernels/cpu_native.py.

#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "few.h"
#include "input.h"
#include "layer.h"
#include "tile.h"
#include "weight.h"

namespace {

constexpr int64_t kWeightBytes = kChunkRows * (kColumns * 2 + kLine);

struct Chunk {
  const Segment *segment;
  int64_t first, rows; // of the segment
  int64_t at;          // row in stored order
};

struct Buffers {        // of one thread
  uint8_t *weight;      // [kChunkRows][kColumns] bfloat16, or fewer columns
  uint32_t *sum;        // [kChunkRows][kSumStride]
};

void store_row(const Work &w, int64_t stored_row, int64_t token, __m512 value) {
  if (w.layer->bias) {
    const float bias = to_float(w.layer->bias[w.layer->order[stored_row]]);
    value = _mm512_add_ps(value, _mm512_set1_ps(bias));
  }
  const __m256i out = _mm512_cvtepi32_epi16(round_bf16(value));
  _mm256_storeu_si256((__m256i *)(w.result + stored_row * w.blocks * kLanes + token), out);
}

void multiply_floats(const Work &w, const Chunk &c, int64_t block, int64_t blocks, Buffers b) {
  const Segment &s = *c.segment;
  for (int64_t k = 0; k < w.columns; k += kColumns) {
    const int64_t count = std::min<int64_t>(kColumns, w.columns - k);
    const int64_t stride = count * 2 + kLine;
    for (int64_t row = 0; row < c.rows; ++row) {
      uint16_t *out = (uint16_t *)(b.weight + row * stride);
      if (s.bits == 16)
        copy_weights(s, c.first + row, w.layer->stored_columns, k, count, out);
      else
        unpack_values(s, c.first + row, w.columns * s.bits / 8, k, count, out);
    }
    const uint8_t *input = w.pairs + (block * w.columns + k) * kLanes * 2;
    multiply_chunk<Bf16>({b.weight, stride, input, w.columns * kLanes * 2, count / 2, b.sum,
                          k == 0, {}, c.rows},
                         blocks);
  }
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t i = 0; i < blocks; ++i)
      store_row(w, c.at + row, (block + i) * kLanes,
                _mm512_loadu_ps(b.sum + row * kSumStride + i * kLanes));
}

// Integers of one row and 16 tokens to scale · (Σ qx·q - zero · Σ qx). The whole part of the zero
// is taken off the integer, where it cancels exactly.
__m512 scaled(const uint32_t *product, const int32_t *sums, float scale, float zero) {
  const int32_t whole = whole_zero(zero);
  const __m512i sum = _mm512_loadu_si512(sums);
  const __m512i rest = _mm512_sub_epi32(_mm512_loadu_si512(product),
                                        _mm512_mullo_epi32(sum, _mm512_set1_epi32(whole)));
  const __m512 part = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(sum),
                                       _mm512_set1_ps(zero - float(whole)),
                                       _mm512_cvtepi32_ps(rest));
  return _mm512_mul_ps(part, _mm512_set1_ps(scale));
}

void multiply_integers(const Work &w, const Chunk &c, int64_t block, int64_t blocks, Buffers b) {
  const Segment &s = *c.segment;
  const bool grouped = s.groups > 1;
  const uint16_t *scale = s.scale + c.first * s.groups, *zero = s.zero + c.first * s.groups;
  for (int64_t k = 0; k < w.columns; k += kColumns) {
    const int64_t count = std::min<int64_t>(kColumns, w.columns - k);
    const int64_t stride = count + kLine;
    for (int64_t row = 0; row < c.rows; ++row)
      unpack_codes(s, c.first + row, w.columns * s.bits / 8, k, count, b.weight + row * stride);
    const uint8_t *input = w.quads + (block * w.columns + k) * kLanes;
    Tile tile{b.weight, stride, input, w.columns * kLanes, count / 4, b.sum, k == 0, {}, c.rows};
    if (!grouped) {
      multiply_chunk<Int8>(tile, blocks);
      continue;
    }
    tile.words = kBlockColumns / 4;
    for (int64_t group = k / kBlockColumns; group < (k + count) / kBlockColumns; ++group) {
      const float *sums = w.group_sums + (group * w.blocks + block) * kLanes;
      tile.grid = {scale + group, zero + group, s.groups, sums};
      tile.first = group == 0;
      multiply_chunk<Int8>(tile, blocks);
      tile.weight += kBlockColumns;
      tile.input += kBlockColumns * kLanes;
    }
  }
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t token = (block + i) * kLanes;
      const uint32_t *sum = b.sum + row * kSumStride + i * kLanes;
      const __m512 part = grouped ? _mm512_loadu_ps(sum)
                                  : scaled(sum, w.sums + token, to_float(scale[row * s.groups]),
                                           to_float(zero[row * s.groups]));
      store_row(w, c.at + row, token, _mm512_mul_ps(part, _mm512_loadu_ps(w.scale + token)));
    }
}

// 16 canonical rows, from the results in stored order, to [tokens][rows].
void write_rows(const Work &w, int64_t row) {
  const int64_t count = std::min<int64_t>(16, w.layer->rows - row);
  const __mmask16 mask = __mmask16((1u << count) - 1);
  const uint16_t *source[16];
  for (int64_t i = 0; i < 16; ++i)
    source[i] = w.result + w.layer->gather[row + std::min(i, count - 1)] * w.blocks * kLanes;
  for (int64_t token = 0; token < w.tokens; token += kLanes) {
    __m512i v[16];
    for (int i = 0; i < 16; ++i)
      v[i] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source[i] + token)));
    transpose(v);
    const int64_t there = std::min<int64_t>(kLanes, w.tokens - token);
    for (int64_t i = 0; i < there; ++i)
      _mm256_mask_storeu_epi16(w.y + (token + i) * w.layer->rows + row, mask,
                               _mm512_cvtepi32_epi16(v[i]));
  }
}

void fill_pruned_rows(const Work &w) {
  for (int64_t row = w.layer->stored_rows; row < w.layer->rows; ++row) {
    const uint16_t value = w.layer->bias ? w.layer->bias[w.layer->order[row]] : 0;
    std::fill_n(w.result + row * w.blocks * kLanes, w.blocks * kLanes, value);
  }
}

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Plan { // where everything lies in the scratch memory
  int64_t pairs, quads, scale, sums, group_sums, result, threads, thread_bytes, total;
};

Plan plan_scratch(const Layer &layer, int64_t tokens, int64_t threads) {
  const int64_t padded = (tokens + kLanes - 1) / kLanes * kLanes;
  const int64_t columns =
      (int64_t(layer.stored_columns) + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  Plan p;
  p.pairs = 0;
  p.quads = p.pairs + aligned(padded * columns * 2);
  p.scale = p.quads + aligned(layer.activation_bits == 8 ? padded * columns : 0);
  p.sums = p.scale + aligned(padded * 4);
  p.group_sums = p.sums + aligned(padded * 4);
  p.result = p.group_sums + aligned(columns / kBlockColumns * padded * 4);
  p.threads = p.result + aligned(padded * layer.rows * 2);
  p.thread_bytes = std::max<int64_t>(
      kWeightBytes + kChunkRows * kSumStride * 4, aligned(kLanes * columns * 3));
  p.total = p.threads + threads * p.thread_bytes;
  return p;
}

} // namespace

extern "C" int64_t qvla_scratch_bytes(const Layer *layer, int64_t tokens, int64_t threads) {
  return plan_scratch(*layer, tokens, threads).total;
}

extern "C" void qvla_linear(const Layer *layer, const void *x, void *y, int64_t tokens,
                            void *scratch, int64_t threads) {
  const Plan plan = plan_scratch(*layer, tokens, threads);
  uint8_t *base = (uint8_t *)scratch;
  const int64_t columns =
      (int64_t(layer->stored_columns) + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  Work w{layer,
         (const uint16_t *)x,
         (uint16_t *)y,
         tokens,
         (tokens + kLanes - 1) / kLanes,
         columns,
         columns / kBlockColumns,
         base + plan.pairs,
         base + plan.quads,
         (float *)(base + plan.scale),
         (int32_t *)(base + plan.sums),
         (float *)(base + plan.group_sums),
         (uint16_t *)(base + plan.result)};
  bool pairs = false, quads = false;
  int64_t chunk_count = 0;
  // Small layers are cut into smaller chunks, so that every thread gets some.
  const int64_t share = (layer->stored_rows / (2 * threads) + 23) / 24 * 24;
  const int64_t chunk_rows = std::min<int64_t>(kChunkRows, std::max<int64_t>(24, share));
  for (int i = 0; i < layer->segment_count; ++i) {
    const Segment &s = layer->segments[i];
    const bool integers = layer->activation_bits == 8 && s.bits < 16;
    (integers ? quads : pairs) = true;
    chunk_count += (s.rows + chunk_rows - 1) / chunk_rows;
  }
  if (tokens <= kFewTokens) {
    pack_few(w, quads);
    int64_t stored_row = 0;
    for (int i = 0; i < layer->segment_count; ++i) {
      const Segment &s = layer->segments[i];
#pragma omp parallel for schedule(static) num_threads(threads)
      for (int64_t row = 0; row < s.rows; ++row) multiply_few(w, s, row, stored_row + row);
      stored_row += s.rows;
    }
    fill_pruned_few(w);
    return;
  }
  const int64_t spans = (w.blocks + kTokens / kLanes - 1) / (kTokens / kLanes);
  const int64_t span_blocks = (w.blocks + spans - 1) / spans; // equal shares
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    uint8_t *mine = base + plan.threads + omp_get_thread_num() * plan.thread_bytes;
#else
    uint8_t *mine = base + plan.threads;
#endif
    const Buffers buffers{mine, (uint32_t *)(mine + kWeightBytes)};
#pragma omp for schedule(static)
    for (int64_t block = 0; block < w.blocks; ++block) pack_input(w, block, pairs, quads, mine);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < chunk_count * spans; ++task) {
      Chunk chunk{layer->segments, 0, 0, 0};
      int64_t index = task / spans;
      for (;; ++chunk.segment) {
        const int64_t count = (chunk.segment->rows + chunk_rows - 1) / chunk_rows;
        if (index < count) break;
        index -= count;
        chunk.at += chunk.segment->rows;
      }
      chunk.first = index * chunk_rows;
      chunk.at += chunk.first;
      chunk.rows = std::min(chunk_rows, chunk.segment->rows - chunk.first);
      const int64_t block = task % spans * span_blocks;
      const int64_t blocks = std::min(span_blocks, w.blocks - block);
      if (blocks <= 0) continue;
      if (layer->activation_bits == 8 && chunk.segment->bits < 16)
        multiply_integers(w, chunk, block, blocks, buffers);
      else
        multiply_floats(w, chunk, block, blocks, buffers);
    }
#pragma omp single
    fill_pruned_rows(w);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < layer->rows; row += 16) write_rows(w, row);
  }
}
