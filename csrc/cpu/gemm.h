// Runs a product's units of work (plan.h) tile by tile: operands in place where the tile can read them, packed
// otherwise.
#pragma once
#include "dots.h"
#include "epilogue.h"
#include "kernels.h"
#include "operands.h"
#include "piece_of_k.h"

namespace pw::PW_ISA {

constexpr int kBufferLanes = kMostLanes + kBytes / 4;  // apart lie rows finished in memory: a power of two takes 1.04 x

template <class T, class D>
class Runner {
  using Elem = typename D::Elem;
  using Acc = typename D::Acc;
  static constexpr bool kInChunks = D::kChunk > 1;  // by tile registers

 public:
  // `slot`: what is packed stays beside that of runners in other slots.
  explicit Runner(const cpu::Job& job, int slot = 0) : job_(job), plan_(job.plan), operands_(job.plan, slot) {
    if (!as_clamp<Acc>(job.gemms[0].activation, low_, high_)) curve_ = &job.gemms[0].activation;
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
      if (weights != weights_) pixels_on_n ? operands_.forget_a() : operands_.forget_b();
      if (pixels != pixels_) pixels_on_n ? operands_.forget_b() : operands_.forget_a();
      weights_ = weights, pixels_ = pixels;
      const Range blocks = cpu::part(plan_.blocks, plan_.m_parts, pixels_on_n ? outer : inner);
      const Range panels = cpu::part(plan_.panels, plan_.n_parts, pixels_on_n ? inner : outer);
      if (g.pixels == Pixels::on_k && !plan_.at_once)
        reduce(g, unit / plan_.units, k_part, blocks, panels);
      else
        forward(g, blocks, panels);
    }
    if (plan_.streamed) end_stream();
    microkernel_.release();
    operands_.trim();
  }

  // All of a product that differs from the last in its pixels alone: W is packed already.
  void run_on_new_pixels(Ahead* ahead) {
    pixels_ = -1, ahead_ = ahead;
    run(0, plan_.units);
  }

  // Rows of C from their partial sums, added in order: one by one, or as many as make squares where they are upright.
  void merge(int64_t begin, int64_t end) {
    constexpr int L = Vec<Acc>::size;
    alignas(64) Acc buffer[L * kBufferLanes];
    for (int64_t row = begin, next; row < end; row = next) {
      const Gemm& g = job_.gemms[row / plan_.m];
      const int64_t m = row % plan_.m;
      prepare_blocks(g);
      const bool upright = c_.upright() && z_.upright() && residual_.upright();
      next = upright ? std::min({end, row + L, row + plan_.m - m}) : row + 1;
      const int rows = int(next - row);
      for (int64_t n = 0; n < plan_.n; n += kMostLanes) {
        const int columns = int(std::min<int64_t>(kMostLanes, plan_.n - n));
        for (int r = 0; r < rows; ++r) {
          const Acc* sums = sums_of(row / plan_.m, 0) + (m + r) * plan_.n + n;
          for (int c = 0; c < columns; c += L) {
            const int lanes = std::min(L, columns - c);
            Vec<Acc> v(0);
            if (g.bias) v = g.bias_on_m ? Vec<Acc>(bias_of(g)[m + r]) : load(bias_of(g) + n + c, lanes);
            for (int64_t k = 0; k < plan_.k_parts; ++k) v = v + load(sums + k * plan_.m * plan_.n + c, lanes);
            store(buffer + r * kBufferLanes + c, v, lanes);
          }
        }
        seek_columns(g, n, columns);
        c_.seek_rows(m, rows), residual_.seek_rows(m, rows), z_.seek_rows(m, rows);
        const Finish<T, D> finish{buffer, kBufferLanes, rows, c_, z_, residual_, g.activation};
        upright&& rows > 1 ? finish.run_upright(0, columns) : finish.run(0, columns);
      }
    }
  }

 private:
  Acc* sums_of(int64_t product, int64_t k_part) const {
    return static_cast<Acc*>(job_.sums) + (product * plan_.k_parts + k_part) * plan_.m * plan_.n;
  }

  void forward(const Gemm& g, Range blocks, Range panels) {
    int segment = 0;
    int64_t position = 0;
    const int64_t k = cpu::total_k(g), longest = std::max(kLongestSum, (k / kSources + 2) / 2 * 2);
    operands_.take(g, segment, position, kInChunks ? k : longest, k);
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
      const int64_t wanted = kInChunks ? cpu::kReduceChunkTiles : cpu::kReduceChunk;
      const int64_t chunk = std::min(cpu::chunk_of(part.size(), wanted), left);
      operands_.take(g, segment, position, kInChunks ? chunk : kLongestSum, chunk);
      operands_.forget_a(), operands_.forget_b();
      sweep(g, blocks, panels, sums, step, job_.add || left != part.size());
      left -= operands_.values();
    }
  }

  // All tiles of a range of blocks (of rows) and panels (of columns), over the current stretches of k.
  void sweep(const Gemm& g, Range blocks, Range panels, Acc* sums = nullptr, int64_t sums_step = 0, bool add = false) {
    operands_.choose(g, blocks);
    if (g.pixels == Pixels::on_k) operands_.pack_pixels(g, blocks, panels);
    if (!sums) prepare_blocks(g);
    const bool even = sums ? !kInChunks : c_.regular() && residual_.regular() && z_.regular();
    const bool once = g.pixels == Pixels::on_n && plan_.beside == 1;  // no panel of B is needed again
    Strip<Elem> strips[kStrips];
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      if (const int64_t done = sums ? 0 : panels_beside(g, blocks, panel, panels)) {
        panel += done - 1;
        continue;
      }
      const Range columns = plan_.columns(panel);
      const int dots = plan_.dots_of(panel), vector_columns = int(columns.size()) - dots;
      if (once && panel != panels.begin) operands_.forget_b();
      operands_.b_strips(g, {columns.begin, columns.end - dots}, once ? 0 : panel - panels.begin,
                         once ? 1 : panels.size(), strips);
      if (dots) operands_.seek_dots(g, columns.end - dots, dots);
      if (!sums) seek_columns(g, columns.begin, int(columns.size()));
      const int64_t length = sums || vector_columns == 0 ? 0 : plan_.piece / D::kPack;
      const int64_t pieces = length ? cpu::ceil_div(operands_.depth(), length) : 1;
      const int64_t group = pieces == 1 ? blocks.size() : std::max<int64_t>(1, kPartialRows / plan_.rows);
      for (Range some{blocks.begin, blocks.begin}; some.begin < blocks.end; some.begin = some.end) {
        some.end = std::min(some.begin + group, blocks.end);
        for (int64_t piece = 0; piece < pieces; ++piece)
          for (int64_t block = some.begin, tiles = 1; block < some.end; block += tiles) {
            const Range rows = plan_.rows_of(block);
            operands_.a_strips(g, block, blocks, strips);
            if (even) tiles = plan_.blocks_alike(block, operands_.end_of_tiles(block, {blocks.begin, some.end}));
            if (dots) tiles = std::min(tiles, tiles_near(rows.size(), operands_.values()));
            if (panel != panels.begin || plan_.upright)
              for (int i = 0; i < operands_.stretches(); ++i) strips[i].a_ahead = 0;  // A is near
            if (pieces == 1)
              piece_.take_all(strips, operands_.stretches());
            else
              piece_.take(strips, operands_.stretches(), piece, length, rows.begin - plan_.rows_of(some.begin).begin);
            if (sums)
              sum_tiles(rows, tiles, columns, sums + rows.begin * sums_step + columns.begin, sums_step, add);
            else if (piece + 1 < pieces)
              partial_tiles(g, rows, tiles, columns, vector_columns);
            else
              result_tiles(g, strips, rows, tiles, columns, vector_columns);
          }
      }
    }
  }

  // Panels that take each block of rows one after the other. Returns how many, from `panel` on: 0 where they are not
  // alike, or not finished in registers.
  int64_t panels_beside(const Gemm& g, Range blocks, int64_t panel, Range panels) {
    if (plan_.beside == 1 || kInChunks || plan_.piece || plan_.run != g.n.size[kRank - 1]) return 0;
    const Range first = plan_.columns(panel);
    const int64_t run_end = (panel / plan_.panels_per_run + 1) * plan_.panels_per_run;
    const int64_t most = std::min({plan_.beside, panels.end - panel, run_end - panel});
    int64_t count = 0;
    while (count < most && plan_.columns(panel + count).size() == first.size() && !plan_.dots_of(panel + count))
      ++count;
    seek_columns(g, first.begin, int(first.size()));
    Strip<Elem> strips[kStrips];
    if (count < 2 || !finishes_in_registers() || !operands_.b_strips_beside(g, panel, count, panels, strips)) return 0;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      operands_.a_strips(g, block, blocks, strips);
      for (int i = 0; i < operands_.stretches(); ++i) strips[i].a_next = strips[i].a_ahead = 0;
      piece_.take_all(strips, operands_.stretches());
      in_registers(g, plan_.rows_of(block), count, first, int(first.size()), /*beside=*/true);
    }
    return count;
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

  // The last columns of `tiles` tiles below one another, from column n of the panel on.
  void dots(const Gemm& g, const Strip<Elem>* strips, Range rows, int64_t tiles, Range columns, int n) {
    const DotProducts<D> products{strips, operands_.stretches(), operands_.dot_columns(), int(rows.size())};
    products.each(int(rows.size() * tiles), int(columns.size()) - n, [&](Vec<Acc> sums, const Lanes& at) {
      c_.seek_rows(rows.begin + at.row, at.rows), z_.seek_rows(rows.begin + at.row, at.rows);
      residual_.seek_rows(rows.begin + at.row, at.rows);
      if (g.bias) {
        const Acc* bias = bias_of(g) + (g.bias_on_m ? rows.begin + at.row : columns.begin + n + at.column);
        sums = sums + at.template gather<Acc>([&](int r, int c) { return bias[g.bias_on_m ? r : c]; });
      }
      if (residual_.data) sums = sums + residual_.gather(n, at);
      if (z_.data) z_.template scatter<D>(n, sums, at);
      c_.template scatter<D>(n, activate(g.activation, sums), at);
    });
  }

  void multiply(int r, int64_t rows, int64_t columns, const Target<D>& t) {
    piece_.multiply(microkernel_, r, int(rows), int(columns), t);
  }

  void sum_tiles(Range rows, int64_t tiles, Range columns, Acc* sums, int64_t step, bool add) {
    Target<D> t;
    t.tiles = tiles, t.sums = sums, t.sums_step = step, t.add = add, t.ahead = ahead_;
    multiply(0, rows.size(), columns.size(), t);
  }

  // Sums of a piece that is not the last, added to those of the pieces before.
  void partial_tiles(const Gemm& g, Range rows, int64_t tiles, Range columns, int n) {
    Target<D> t = target(g, rows, columns);
    t.tiles = tiles, t.sums = piece_.partial(), t.sums_step = kMostLanes, t.add = !piece_.first(), t.partial = nullptr;
    for (int r = 0; r < rows.size(); r += plan_.tile_rows) {
      multiply(r, std::min<int64_t>(plan_.tile_rows, rows.size() - r), n, t);
      next_rows(t);
    }
  }

  // Moves a target on to the next tile of a block.
  void next_rows(Target<D>& t) const {
    if (t.init == Init::per_row) t.bias += plan_.tile_rows;
    t.sums += plan_.tile_rows * t.sums_step;
    if (t.partial) t.partial += plan_.tile_rows * kMostLanes;
  }

  // `tiles` tiles below one another, `rows` those of the first: the first n columns in vectors, the others as dots.
  void result_tiles(const Gemm& g, Strip<Elem>* strips, Range rows, int64_t tiles, Range columns, int n) {
    const bool finished = in_registers(g, rows, tiles, columns, n);
    if constexpr (!kInChunks)
      if (n < columns.size()) dots(g, strips, rows, tiles, columns, n);
    const int64_t m = rows.size();
    for (; tiles > 0 && !finished; --tiles, rows.begin += m, rows.end += m) {
      in_memory(g, rows, columns, n);
      if (tiles == 1) break;
      std::for_each(strips, strips + operands_.stretches(), [](Strip<Elem>& s) { s.next_tile(); });
      piece_.next_tile(m);
    }
  }

  Target<D> target(const Gemm& g, Range rows, Range columns) const {
    Target<D> t;
    t.ahead = ahead_, t.in_pieces = piece_.one_of_several();
    if (!piece_.first()) {
      t.partial = piece_.partial();
    } else if (g.bias) {
      t.init = g.bias_on_m ? Init::per_row : Init::per_column;
      t.bias = bias_of(g) + (g.bias_on_m ? rows.begin : columns.begin);
      t.bias_next = g.bias_on_m ? rows.size() : 0;
    }
    return t;
  }

  bool finishes_in_registers() const {
    return std::is_same_v<T, typename D::Store> && !plan_.upright && c_.unit() && residual_.unit() && z_.unit();
  }
  // Whether the tiles could be finished in registers, and were. They lie below one another, or `beside`.
  bool in_registers(const Gemm& g, Range rows, int64_t tiles, Range columns, int n, bool beside = false) {
    if constexpr (std::is_same_v<T, typename D::Store>) {
      if (!finishes_in_registers()) return false;
      const int m = int(rows.size());
      c_.seek_rows(rows.begin, m), residual_.seek_rows(rows.begin, m), z_.seek_rows(rows.begin, m);
      Target<D> t = target(g, rows, columns);
      t.tiles = tiles;
      if (beside) t.bias_next = g.bias_on_m ? 0 : n;
      t.c = c_.first, t.c_row = c_.row.table(), t.c_next = beside ? n : m * c_.row.step();
      if (residual_.data)
        t.residual = residual_.first, t.residual_row = residual_.row.table(),
        t.residual_next = beside ? n : m * residual_.row.step();
      if (z_.data) t.z = z_.first, t.z_row = z_.row.table(), t.z_next = beside ? n : m * z_.row.step();
      t.curve = curve_, t.low = low_, t.high = high_;
      const int lined = tiles > 1 ? std::max(m, 2) : m;
      t.streamed = plan_.streamed && c_.on_lines(lined) && (!z_.data || z_.on_lines(lined)) &&
                   (!beside || n * sizeof(T) % cpu::kLineBytes == 0);
      multiply(0, m, n, t);
      return true;
    }
    return false;
  }

  // One tile's n columns by way of a buffer.
  void in_memory(const Gemm& g, Range rows, Range columns, int n) {
    const int m = int(rows.size());
    Target<D> t = target(g, rows, columns);
    c_.seek_rows(rows.begin, m), residual_.seek_rows(rows.begin, m), z_.seek_rows(rows.begin, m);
    const bool streamed = plan_.streamed && c_.unit() && c_.on_lines(m);
    if (plan_.upright)
      for (int c = 0; c < n; ++c) __builtin_prefetch(c_.at_column(c), 1);
    else if (!streamed && c_.unit())  // as in one_tile
      for (int r = 0; r < m; ++r)
        for (int c = 0; c < n; c += 64 / int(sizeof(T))) __builtin_prefetch(c_.first + c_.row[r] + c, 1);
    alignas(64) Acc buffer[kBlockRows * kBufferLanes];
    t.sums = buffer, t.sums_step = kBufferLanes;
    for (int r = 0; r < m; r += plan_.tile_rows) {
      multiply(r, std::min<int64_t>(plan_.tile_rows, m - r), n, t);
      next_rows(t);
    }
    const Finish<T, D> finish{buffer, kBufferLanes, m, c_, z_, residual_, g.activation, streamed};
    if (plan_.upright && z_.upright() && residual_.upright())
      finish.run_upright(0, n);
    else
      finish.run(0, n);
  }

  const cpu::Job& job_;
  const Plan& plan_;
  Operands<T, D> operands_;
  const Activation* curve_ = nullptr;  // null where the activation clamps to [low_, high_]
  Acc low_, high_;
  int64_t weights_ = -1, pixels_ = -1;  // whose operands are packed
  Ahead* ahead_ = nullptr;
  Block<T> c_, z_, residual_;
  PieceOfK<D> piece_;
  Microkernel<D> microkernel_;
};

}  // namespace pw::PW_ISA
