// The microkernel on AMX: C in tile registers, each 16 rows of 64 bytes,
//
//     C[m, n] = activation( init[m, n] + sum over strips, k of A[m, k] B[k, n] ),    up to 16 rows of NV registers.
//
// Both operands are bf16 pairs of neighbouring k: a register holds 16 rows of 32 k of A, or 32 k of 16 columns of B.
// One multiplication takes 16 cycles, a load 8: one register of A for four of B, as many as keep both busy. 32 x 32
// columns would be read less often, which gains nothing where B's panel stays in the first-level cache.
#pragma once
#include "tile.h"
#ifdef PW_EMULATE_AMX
#include "../emulate/amx.h"
#endif

namespace pw::PW_ISA {

struct DotTiles : DotBf16 {
  static constexpr int kChunk = 16;  // elements of k in a register: packed operands are filled up with zeros
};

constexpr int kTileRows = 16;

// Compilers take it that the instructions read no memory: what they read must be there before.
PW_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// The registers' shapes, for A and C of `rows` rows and `depth` elements of k in A and B: loaded where those change,
// 47 ns each time, and given back at the end, for other code's sake.
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() { release(); }
  void shape(int rows, int depth) {
    if (rows == rows_ && depth == depth_) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = uint8_t(i < 5 ? rows : depth);
    shapes.bytes[4] = uint16_t(depth * 4);
    finish_stores();
    _tile_loadconfig(&shapes);
    rows_ = rows, depth_ = depth;
  }
  void release() {
    if (rows_) _tile_release();
    rows_ = 0;
  }

 private:
  int rows_ = 0, depth_ = 0;
};

// Their numbers are part of the instructions: C's are 0 to 3, A's is 4, B's are 5 to 7.
template <int NV>
PW_INLINE void zero_tiles() {
  _tile_zero(0);
  if constexpr (NV > 1) _tile_zero(1);
  if constexpr (NV > 2) _tile_zero(2);
  if constexpr (NV > 3) _tile_zero(3);
}
template <int NV>
PW_INLINE void load_tiles(const float* from, int64_t apart, int64_t row_bytes) {
  _tile_loadd(0, from, row_bytes);
  if constexpr (NV > 1) _tile_loadd(1, from + apart, row_bytes);
  if constexpr (NV > 2) _tile_loadd(2, from + 2 * apart, row_bytes);
  if constexpr (NV > 3) _tile_loadd(3, from + 3 * apart, row_bytes);
}
template <int NV>
PW_INLINE void store_tiles(float* to, int64_t row_bytes) {
  _tile_stored(0, to, row_bytes);
  if constexpr (NV > 1) _tile_stored(1, to + 16, row_bytes);
  if constexpr (NV > 2) _tile_stored(2, to + 32, row_bytes);
  if constexpr (NV > 3) _tile_stored(3, to + 48, row_bytes);
}
template <int NV>
PW_INLINE void multiply_tiles(const void* a, int64_t a_bytes, const uint32_t* b, int64_t b_bytes) {
  _tile_loadd(4, a, a_bytes);
  _tile_loadd(5, b, b_bytes);
  _tile_dpbf16ps(0, 4, 5);
  if constexpr (NV > 1) {
    _tile_loadd(6, b + 16, b_bytes);
    _tile_dpbf16ps(1, 4, 6);
  }
  if constexpr (NV > 2) {
    _tile_loadd(7, b + 32, b_bytes);
    _tile_dpbf16ps(2, 4, 7);
  }
  if constexpr (NV > 3) {
    _tile_loadd(5, b + 48, b_bytes);
    _tile_dpbf16ps(3, 4, 5);
  }
}

// Fetches the rows of the next tile in the order of memory, `lines` each, which the prefetchers take up.
struct NextRows {
  const char* row;
  int64_t row_bytes, lines, line = 0;

  PW_INLINE void fetch(int count) {
    for (; count > 0; --count) {
      __builtin_prefetch(row + line * 64);
      if (++line == lines) line = 0, row += row_bytes;
    }
  }
};

// Tiles below one another, of `rows` rows each; the registers have their shape, and take `depth` elements of k.
template <int NV>
void tiles_in_registers(const Strip<uint32_t>* strips, int count, int rows, int depth, int last,
                        const Target<DotTiles>& t) {
  using V = Vec<float>;
  constexpr int L = V::size, kColumns = NV * L;
  alignas(64) float start[kTileRows * L], sums[kTileRows * kColumns];
  alignas(64) uint32_t rest[kTileRows * L];
  const auto lanes = [last](int n) { return n == NV - 1 ? last : L; };
  if (t.init == Init::per_column)
    for (int n = 0; n < NV; ++n) store(start + n * L, load(t.bias + n * L, lanes(n)), L);
  finish_stores();
  const bool whole = t.sums && last == L;  // sums may be read and written in whole registers
  const V low(t.low), high(t.high);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool from_low = t.low > -kInfinity, to_high = t.high < kInfinity;

  for (int64_t index = 0; index < t.tiles; ++index) {
    bf16* const c = t.c + index * t.c_next;
    const bf16* const residual = t.residual + index * t.residual_next;
    float* const to = t.sums + index * rows * t.sums_step;
    if (t.partial) {
      load_tiles<NV>(t.partial + index * rows * kMostLanes, L, kMostLanes * 4);
    } else if (whole && t.add) {
      load_tiles<NV>(to, L, t.sums_step * 4);
    } else if (t.add) {
      for (int m = 0; m < rows; ++m)
        for (int n = 0; n < NV; ++n)
          store(sums + m * kColumns + n * L, load(to + m * t.sums_step + n * L, lanes(n)), L);
      finish_stores();
      load_tiles<NV>(sums, L, kColumns * 4);
    } else if (t.init == Init::per_row) {
      for (int m = 0; m < rows; ++m) store(start + m * L, V(t.bias[index * rows + m]), L);
      finish_stores();
      load_tiles<NV>(start, 0, 64);
    } else if (t.init == Init::per_column) {
      load_tiles<NV>(start, L, 0);
    } else {
      zero_tiles<NV>();
    }
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < NV; n += 2) {  // a line
        if (t.c && !t.streamed) __builtin_prefetch(c + t.c_row[m] + n * L, 1);
        if (t.residual) __builtin_prefetch(residual + t.residual_row[m] + n * L);
      }
      if (t.ahead) t.ahead->fetch();
    }
    for (int s = 0; s < count; ++s) {
      const Strip<uint32_t>& strip = strips[s];
      const char* a = reinterpret_cast<const char*>(strip.a) + index * strip.a_next + strip.a_row[0];
      const int64_t a_bytes = rows > 1 ? strip.a_row[1] - strip.a_row[0] : 64, b_bytes = strip.b_step * 4;
      const uint32_t* b = strip.b;
      int64_t k = strip.k;
      NextRows next{a + strip.a_ahead, a_bytes, (k * 4 + 63) / 64};
      for (; k >= depth; k -= depth, a += depth * 4, b += depth * strip.b_step) {
        multiply_tiles<NV>(a, a_bytes, b, b_bytes);
        if (strip.a_ahead) next.fetch(rows);
      }
      if (k > 0) {  // what follows in A's rows is not zero
        for (int m = 0; m < rows; ++m)
          _mm512_store_si512(rest + m * L, _mm512_maskz_loadu_epi32(lanes16(int(k)), a + m * a_bytes));
        if (strip.a_ahead) next.fetch(rows);
        finish_stores();
        multiply_tiles<NV>(rest, 64, b, b_bytes);
      }
    }
    if (whole) {
      store_tiles<NV>(to, t.sums_step * 4);
      continue;
    }
    store_tiles<NV>(sums, kColumns * 4);
    if (t.sums) {
      for (int m = 0; m < rows; ++m)
        for (int n = 0; n < NV; ++n)
          store(to + m * t.sums_step + n * L, load(sums + m * kColumns + n * L, L), lanes(n));
      continue;
    }
    for (int m = 0; m < rows; ++m) {
      V v[NV];
      const auto each = [&](auto change) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) v[n] = change(v[n], n);
      };
      each([&](V, int n) { return load(sums + m * kColumns + n * L, L); });
      if (t.residual) each([&](V x, int n) { return x + load(residual + t.residual_row[m] + n * L, lanes(n)); });
      if (t.z) DotTiles::store_row<NV>(t.z + index * t.z_next + t.z_row[m], v, last, t.streamed);
      if (t.curve) {
        V kept[NV];
        each([&](V x, int n) { return kept[n] = x; });
        apply(*t.curve, kept, NV);
        each([&](V, int n) { return kept[n]; });
      }
      if (from_low) each([&](V x, int) { return select(x < low, low, x); });
      if (to_high) each([&](V x, int) { return select(x > high, high, x); });
      DotTiles::store_row<NV>(c + t.c_row[m], v, last, t.streamed);
    }
  }
}

constexpr int kRowsInRegisters[kVectors] = {kTileRows, kTileRows, kTileRows, kTileRows};

template <>
struct Microkernel<DotTiles> {
  static constexpr const int* kMostRowsOf = kRowsInRegisters;
  void run(const Strip<uint32_t>* strips, int count, int rows, int vectors, int last, const Target<DotTiles>& t) {
    constexpr decltype(&tiles_in_registers<1>) kOf[kVectors] = {tiles_in_registers<1>, tiles_in_registers<2>,
                                                                tiles_in_registers<3>, tiles_in_registers<4>};
    // One multiplication adds up even and odd k each, then both: its depth decides the bits, so that K alone decides
    // it.
    const int depth = count == 1 && !t.in_pieces ? depth_of(strips[0].k) : DotTiles::kChunk;
    registers_.shape(rows, depth);
    kOf[vectors - 1](strips, count, rows, depth, last, t);
  }
  void release() { registers_.release(); }

 private:
  // Elements of k at a time that leave nothing over, which would cost more than smaller registers: 12 of 72, not 16.
  static int depth_of(int64_t k) {
    if (k == 0 || k > kFewSteps * DotTiles::kChunk) return DotTiles::kChunk;
    for (int64_t least = (k + DotTiles::kChunk - 1) / DotTiles::kChunk, n = least; n <= least + 1; ++n)
      if (k % n == 0) return int(k / n);
    return DotTiles::kChunk;
  }
  static constexpr int64_t kFewSteps = 8;
  TileRegisters registers_;
};

}  // namespace pw::PW_ISA
