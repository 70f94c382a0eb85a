// Runs a product's units of work (plan.h) tile by tile: operands in place where the tile can read them, packed
// otherwise.
#pragma once
#include "epilogue.h"
#include "kernels.h"
#include "pack.h"
#include "plan.h"

namespace pw::PW_ISA {

using cpu::Plan;
using cpu::Range;

constexpr int kStrips = 16;                            // pieces of k handed to one tile
constexpr int kBufferLanes = kMostLanes + kBytes / 4;  // of a tile that is finished in memory: its columns and dots
// Values of k added up in one register: the error of a longer running sum would pass twice that of PyTorch's, which
// blocks its sums too.
constexpr int64_t kLongestSum = 512;

// Packed operands of one thread, kept between calls up to kKeep: allocating 1 MB anew costs more than filling it.
template <class Elem>
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  Elem* get(int64_t elements) {
    if (elements > size_) {
      std::free(data_);
      data_ = static_cast<Elem*>(std::aligned_alloc(64, (elements * sizeof(Elem) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = elements;
    }
    return data_;
  }
  void trim() {
    constexpr int64_t kKeep = 16 << 20;
    if (size_ * int64_t(sizeof(Elem)) > kKeep) std::free(data_), data_ = nullptr, size_ = 0;
  }

 private:
  Elem* data_ = nullptr;
  int64_t size_ = 0;
};

// A stretch of k along which both operands advance by a constant step.
struct Stretch {
  int segment;
  int64_t k, a_offset, b_offset;  // length; where it starts in A and B
};

// The next stretches from a position on, each at most `longest` and all together at most `most` values of k.
inline int next_stretches(const Gemm& g, int& segment, int64_t& position, int64_t longest, int64_t most, Stretch* out) {
  int count = 0;
  for (int64_t left = most; segment < g.segments && left > 0 && count < kStrips;) {
    const Segment& s = g.segment[segment];
    const int64_t total = s.k.count(), inner = s.k.size[kRank - 1];
    if (position < total) {
      const int64_t length = std::min({longest, left, inner - position % inner, total - position});
      out[count++] = {segment, length, offset(s.k, s.a.col, position), offset(s.k, s.b.row, position)};
      position += length, left -= length;
    }
    if (position >= total) ++segment, position = 0;
  }
  return count;
}

template <class T, class D>
class Runner {
  using Elem = typename D::Elem;
  using Acc = typename D::Acc;
  static constexpr bool kSame = std::is_same_v<T, Elem>;  // operands may be read in place

 public:
  Runner(const cpu::Job& job) : job_(job), plan_(job.plan) {
    clamps_ = as_clamp<Acc>(job.gemms[0].activation, low_, high_);
  }

  void run(int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      // The unit's index, slowest first: product, part of the weights, part of the pixels.
      int64_t rest = unit % plan_.units;
      const Gemm& g = job_.gemms[unit / plan_.units];
      const bool pixels_on_n = g.pixels == Pixels::on_n;
      const int64_t inner_parts = pixels_on_n ? plan_.n_parts : plan_.m_parts;
      const int64_t inner = rest % inner_parts;
      rest /= inner_parts;
      const int64_t outer_parts = pixels_on_n ? plan_.m_parts : plan_.n_parts, outer = rest % outer_parts;
      const int64_t k_part = rest / outer_parts;
      // What is packed of an operand serves until its part changes.
      const int64_t weights = unit / inner_parts, pixels = unit / plan_.units * inner_parts + inner;
      if (weights != weights_) forget(pixels_on_n ? a_ready_ : b_ready_);
      if (pixels != pixels_) forget(pixels_on_n ? b_ready_ : a_ready_);
      weights_ = weights, pixels_ = pixels;
      const Range blocks = cpu::part(plan_.blocks, plan_.m_parts, pixels_on_n ? outer : inner);
      const Range panels = cpu::part(plan_.panels, plan_.n_parts, pixels_on_n ? inner : outer);
      if (g.pixels == Pixels::on_k && !plan_.at_once)
        reduce(g, unit / plan_.units, k_part, blocks, panels);
      else
        forward(g, blocks, panels);
    }
    if (plan_.streamed) end_stream();
    a_scratch().trim(), b_scratch().trim(), dot_scratch().trim();
  }

  // Rows of C from their partial sums, added in order.
  void merge(int64_t begin, int64_t end) {
    constexpr int L = Vec<Acc>::size;
    alignas(64) Acc buffer[kBufferLanes];
    for (int64_t row = begin; row < end; ++row) {
      const Gemm& g = job_.gemms[row / plan_.m];
      const int64_t m = row % plan_.m;
      const Acc* sums = sums_of(row / plan_.m, 0) + m * plan_.n;
      prepare_blocks(g);
      for (int64_t n = 0; n < plan_.n; n += kMostLanes) {
        const int columns = int(std::min<int64_t>(kMostLanes, plan_.n - n));
        for (int c = 0; c < columns; c += L) {
          const int lanes = std::min(L, columns - c);
          Vec<Acc> v(0);
          if (g.bias) v = g.bias_on_m ? Vec<Acc>(bias_of(g)[m]) : load(bias_of(g) + n + c, lanes);
          for (int64_t k = 0; k < plan_.k_parts; ++k) v = v + load(sums + k * plan_.m * plan_.n + n + c, lanes);
          store(buffer + c, v, lanes);
        }
        seek_columns(g, n, columns);
        c_.seek_rows(m, 1), residual_.seek_rows(m, 1), z_.seek_rows(m, 1);
        Finish<T, D>{buffer, kBufferLanes, 1, c_, z_, residual_, g.activation}.run(0, columns);
      }
    }
  }

 private:
  static Scratch<Elem>& a_scratch() {
    static thread_local Scratch<Elem> scratch;
    return scratch;
  }
  static Scratch<Elem>& b_scratch() {
    static thread_local Scratch<Elem> scratch;
    return scratch;
  }
  static Scratch<Elem>& dot_scratch() {
    static thread_local Scratch<Elem> scratch;
    return scratch;
  }
  static void forget(std::vector<bool>& ready) { std::fill(ready.begin(), ready.end(), false); }

  Acc* sums_of(int64_t product, int64_t k_part) const {
    return static_cast<Acc*>(job_.sums) + (product * plan_.k_parts + k_part) * plan_.m * plan_.n;
  }

  void forward(const Gemm& g, Range blocks, Range panels) {
    int segment = 0;
    int64_t position = 0;
    const int64_t k = cpu::total_k(g), longest = std::max(kLongestSum, (k / kSources + 2) / 2 * 2);
    stretches_ = next_stretches(g, segment, position, longest, k, stretch_);
    sweep(g, blocks, panels);
  }

  // Long sums: k in chunks, each added to the sums of the last.
  void reduce(const Gemm& g, int64_t product, int64_t k_part, Range blocks, Range panels) {
    const Range part = cpu::part_in_steps(cpu::total_k(g), plan_.k_parts, k_part, cpu::kReduceStep);
    Acc* sums = job_.sums ? sums_of(product, k_part) : static_cast<Acc*>(g.c.data);
    const int64_t step = job_.sums ? plan_.n : g.c.row.step[kRank - 1];
    int segment = 0;
    int64_t position = part.begin;
    while (segment < g.segments && position >= g.segment[segment].k.count()) position -= g.segment[segment++].k.count();
    for (int64_t left = part.size(); left > 0;) {
      const int64_t chunk = std::min(cpu::chunk_of(part.size()), left);
      stretches_ = next_stretches(g, segment, position, chunk, chunk, stretch_);
      forget(a_ready_), forget(b_ready_);
      sweep(g, blocks, panels, sums, step, left != part.size());
      for (int i = 0; i < stretches_; ++i) left -= stretch_[i].k;
    }
  }

  // All tiles of a range of blocks (of rows) and panels (of columns), over the current stretches of k.
  void sweep(const Gemm& g, Range blocks, Range panels, Acc* sums = nullptr, int64_t sums_step = 0, bool add = false) {
    decide(g, blocks);
    if (!sums) prepare_blocks(g);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const Range columns = plan_.columns(panel);
      const int dots = plan_.dots_of(panel), vector_columns = int(columns.size()) - dots;
      Strip<Elem> strips[kStrips];
      b_strips(g, {columns.begin, columns.end - dots}, panel - panels.begin, panels.size(), strips);
      if (dots) dot_columns(g, columns.end - dots, dots);
      if (!sums) seek_columns(g, columns.begin, int(columns.size()));
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const Range rows = plan_.rows_of(block);
        a_strips(g, rows, block - blocks.begin, blocks.size(), strips);
        if (sums)
          sum_tile(strips, rows, columns, sums + rows.begin * sums_step + columns.begin, sums_step, add);
        else
          result_tile(g, strips, rows, columns, vector_columns);
      }
    }
  }

  void prepare_blocks(const Gemm& g) { c_.prepare(g.c, g.m), z_.prepare(g.z, g.m), residual_.prepare(g.residual, g.m); }
  void seek_columns(const Gemm& g, int64_t begin, int count) {
    c_.seek_columns(g.c, g.n, begin, count);
    z_.seek_columns(g.z, g.n, begin, count);
    residual_.seek_columns(g.residual, g.n, begin, count);
  }
  const Acc* bias_of(const Gemm& g) const {
    const int64_t length = g.bias_on_m ? plan_.m : plan_.n;
    return job_.bias ? static_cast<const Acc*>(job_.bias) + (&g - job_.gemms) * length
                     : static_cast<const Acc*>(g.bias);
  }

  // Which operands the tiles may read in place.
  void decide(const Gemm& g, Range blocks) {
    depth_ = 0;
    a_direct_ = kSame || D::kPack == 2;
    b_direct_ = kSame && (kBytes == 64 || blocks.size() < 4);  // shorter vectors use little of each line they touch
    for (int i = 0; i < stretches_; ++i) {
      const int64_t a_step = g.segment[stretch_[i].segment].a.col.step[kRank - 1], k = stretch_[i].k;
      depth_ += cpu::ceil_div(k, D::kPack);
      if (D::kPack == 2)  // a pair is one element: its two k must be neighbours, and none may be left over
        a_direct_ = a_direct_ && a_step == 1 && k % 2 == 0;
      else if (g.pixels != Pixels::on_k && a_step != 1 && k > 64 && plan_.panels > 2)
        a_direct_ = false;  // every k would touch a line of its own, again for each block of rows
    }
    if (cpu::forced.packed == 1) a_direct_ = b_direct_ = false;
    for (int i = 0; i < stretches_; ++i)
      a_rows_[i].prepare(g.m, g.segment[stretch_[i].segment].a.row, a_direct_ ? int64_t(sizeof(T)) : 1);
  }

  void a_strips(const Gemm& g, Range rows, int64_t slot, int64_t slots, Strip<Elem>* strips) {
    const int m = int(rows.size());
    Elem* dst = nullptr;
    if (!a_direct_) {
      if (int64_t(a_ready_.size()) != slots) a_ready_.assign(slots, false);
      dst = a_scratch().get(slots * depth_ * plan_.rows) + slot * depth_ * plan_.rows;
    }
    for (int i = 0; i < stretches_; ++i) {
      const Matrix& a = g.segment[stretch_[i].segment].a;
      const T* p = static_cast<const T*>(a.data) + stretch_[i].a_offset;
      const int64_t k_step = a.col.step[kRank - 1], steps = cpu::ceil_div(stretch_[i].k, D::kPack);
      strips[i].k = steps;
      if (a_direct_) {
        const char* start = reinterpret_cast<const char*>(p) + a_rows_[i].seek(rows.begin, m);
        strips[i].a = reinterpret_cast<const Elem*>(start);
        strips[i].a_row = a_rows_[i].table(), strips[i].a_step = D::kPack == 2 ? 1 : k_step;
        continue;
      }
      if (!a_ready_[slot]) {
        const int64_t start = a_rows_[i].seek(rows.begin, m);
        pack<T, D>(p + start, a_rows_[i].table(), m, stretch_[i].k, k_step, dst, m);
      }
      strips[i].a = dst, strips[i].a_row = kPackedRows.table, strips[i].a_step = m;
      dst += steps * m;
    }
    if (dst) a_ready_[slot] = true;
  }

  void b_strips(const Gemm& g, Range columns, int64_t slot, int64_t slots, Strip<Elem>* strips) {
    constexpr int L = Vec<Acc>::size;
    const int n = int(columns.size());
    if (n == 0) return;
    const int64_t ld = cpu::ceil_div(n, L) * L;
    Elem* dst = nullptr;
    for (int i = 0; i < stretches_; ++i) {
      const Matrix& b = g.segment[stretch_[i].segment].b;
      const T* p = static_cast<const T*>(b.data) + stretch_[i].b_offset;
      const int64_t k_step = b.row.step[kRank - 1], steps = cpu::ceil_div(stretch_[i].k, D::kPack);
      Columns place;
      place.seek(g.n, b.col, columns.begin, n);
      if (b_direct_ && place.unit && (kBytes == 64 || n % L == 0)) {
        strips[i].b = reinterpret_cast<const Elem*>(p + place.start), strips[i].b_step = k_step;
        continue;
      }
      if (!dst) {
        const int64_t size = depth_ * L * kVectors;
        if (int64_t(b_ready_.size()) != slots) b_ready_.assign(slots, false);
        dst = b_scratch().get(slots * size) + slot * size;
      }
      if (!b_ready_[slot]) pack<T, D>(p + place.start, place.counted(n), n, stretch_[i].k, k_step, dst, ld);
      strips[i].b = dst, strips[i].b_step = ld;
      dst += steps * ld;
    }
    if (dst) b_ready_[slot] = true;
  }

  // Columns that are summed up along k: read in place where k has unit step, else copied.
  void dot_columns(const Gemm& g, int64_t begin, int count) {
    T* dst = nullptr;
    for (int i = 0; i < stretches_; ++i) {
      const Matrix& b = g.segment[stretch_[i].segment].b;
      const int64_t k_step = b.row.step[kRank - 1], k = stretch_[i].k;
      for (int c = 0; c < count; ++c) {
        const T* p = static_cast<const T*>(b.data) + stretch_[i].b_offset + offset(g.n, b.col, begin + c);
        if (k_step != 1) {
          if (!dst) dst = reinterpret_cast<T*>(dot_scratch().get(count * depth_));
          for (int64_t j = 0; j < k; ++j) dst[j] = p[j * k_step];
          p = dst, dst += k;
        }
        dot_b_[i][c] = reinterpret_cast<const Elem*>(p);
      }
    }
  }

  void dot_tile(const Gemm& g, const Strip<Elem>* strips, Range rows, int64_t column, int count, Acc* sums) const {
    const int m = int(rows.size());
    for (int c = 0; c < count; ++c) {
      for (int r = 0; r < m; ++r)
        sums[r * kBufferLanes + c] = g.bias ? bias_of(g)[g.bias_on_m ? rows.begin + r : column + c] : Acc(0);
      for (int i = 0; i < stretches_; ++i)
        kTiles<D>.dots[m - 1](strips[i].a, strips[i].a_row, dot_b_[i][c], strips[i].k, sums + c, kBufferLanes);
    }
  }

  // Runs the microkernel of the right size.
  void multiply(const Strip<Elem>* strips, int count, int64_t m, int64_t n, const Target<D>& t) const {
    constexpr int L = Vec<Acc>::size;
    if (n == 0) return;
    const int vectors = int(n + L - 1) / L, last = int(n) - (vectors - 1) * L;
    kTiles<D>.of[vectors - 1][m - 1](strips, count, last, t);
  }

  void sum_tile(const Strip<Elem>* strips, Range rows, Range columns, Acc* sums, int64_t step, bool add) const {
    Target<D> t;
    t.sums = sums, t.sums_step = step, t.add = add;
    multiply(strips, stretches_, rows.size(), columns.size(), t);
  }

  // The first n columns in vectors, the others as dots.
  void result_tile(const Gemm& g, const Strip<Elem>* strips, Range rows, Range columns, int n) {
    const int m = int(rows.size()), all = int(columns.size());
    Target<D> t;
    if (g.bias) {
      t.init = g.bias_on_m ? Init::per_row : Init::per_column;
      t.bias = bias_of(g) + (g.bias_on_m ? rows.begin : columns.begin);
    }
    c_.seek_rows(rows.begin, m), residual_.seek_rows(rows.begin, m);
    const bool long_sum = depth_ * D::kPack > kLongestSum && stretches_ > 1;
    int finished = 0;
    if constexpr (std::is_same_v<T, typename D::Store>) {
      if (!long_sum && clamps_ && !plan_.upright && c_.unit() && residual_.unit() && !z_.data) {
        t.c = c_.first, t.c_row = c_.row.table();
        t.residual = residual_.data ? residual_.first : nullptr, t.residual_row = residual_.row.table();
        t.low = low_, t.high = high_;
        t.streamed = plan_.streamed && c_.on_lines(m);
        multiply(strips, stretches_, m, n, t);
        if (n == all) return;
        t.c = nullptr, finished = n;
      }
    }
    z_.seek_rows(rows.begin, m);
    if (plan_.upright)
      for (int c = 0; c < all; ++c) __builtin_prefetch(c_.at_column(c), 1);
    alignas(64) Acc buffer[kBlockRows * kBufferLanes];
    Strip<Elem> part[kStrips];
    std::copy(strips, strips + stretches_, part);
    for (int r = 0; r < m; r += plan_.tile_rows) {
      const Range some{rows.begin + r, std::min(rows.begin + r + plan_.tile_rows, rows.end)};
      Acc* sums = buffer + r * kBufferLanes;
      if (finished == 0) sum_strips(part, some.size(), n, long_sum ? 1 : stretches_, t, sums);
      dot_tile(g, part, some, columns.begin + n, all - n, sums + n);
      for (int i = 0; i < stretches_; ++i) part[i].a_row += plan_.tile_rows;
      if (t.init == Init::per_row) t.bias += plan_.tile_rows;
    }
    const Finish<T, D> finish{buffer, kBufferLanes, m, c_, z_, residual_, g.activation};
    if (plan_.upright && z_.upright() && residual_.upright())
      finish.run_upright(finished, all);
    else
      finish.run(finished, all);
  }

  // Raw sums of a tile, `together` strips at a time.
  void sum_strips(const Strip<Elem>* strips, int64_t m, int n, int together, Target<D> t, Acc* sums) const {
    t.sums = sums, t.sums_step = kBufferLanes;
    for (int i = 0; i == 0 || i < stretches_; i += std::max(together, 1)) {
      multiply(strips + i, together, m, n, t);
      t.init = Init::zero, t.add = true;
    }
  }

  // Rows of a packed operand lie next to each other.
  struct PackedRows {
    int64_t table[kBlockRows];
    constexpr PackedRows() : table() {
      for (int r = 0; r < kBlockRows; ++r) table[r] = r * int64_t(sizeof(Elem));
    }
  };
  static constexpr PackedRows kPackedRows{};

  const cpu::Job& job_;
  const Plan& plan_;
  bool clamps_, a_direct_ = false, b_direct_ = false;
  Acc low_, high_;
  int64_t weights_ = -1, pixels_ = -1, depth_ = 0;  // whose operands are packed; elements of k in all stretches
  int stretches_ = 0;
  Stretch stretch_[kStrips];
  Rows a_rows_[kStrips];
  const Elem* dot_b_[kStrips][cpu::kMostDots];
  Block<T> c_, z_, residual_;
  std::vector<bool> a_ready_, b_ready_;  // packed operands of the current range, by block and panel
};

}  // namespace pw::PW_ISA
