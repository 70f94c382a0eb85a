// How a product is cut into tiles and units of work: a pure function of its shape, the vector length and the threads.
#pragma once
#include "turn.h"

namespace pw::cpu {

// What the planner needs to know of an instruction set and element type.
struct Tiling {
  int lanes;        // of one accumulator
  int vectors;      // widest tile, in vectors
  const int* rows;  // rows[v - 1]: most rows of a tile of v vectors, so that accumulators fill the registers
  int pack;         // values of k in one element of the operands
  int chunk;        // values of k that are multiplied at once
  double upright_cost;
  bool narrow;  // the widest tile's row is a line or less
  bool stored;  // operands are multiplied as they are stored, in place; else they are packed first
};

// Of B's panels that lie beside one another and all take a block of rows before the next one does: rows of C that are
// one line long, each in another page, are slow to write (24 -> 144 at 56x56 in NCHW 1.5 times as fast, 64 -> 32 1.1).
constexpr int64_t kBesideBytes = 32 << 10, kMostBeside = 16;
constexpr int64_t kGrainFlops = 1 << 20;  // per task: below, the second thread costs more than it brings
constexpr int64_t kEvenUnits = 16;        // units per task: below, one more for one task than for another is seen
constexpr int64_t kFewPixels = 2048;      // channels_last: beyond, a thread's packing of all of W is below 2 %
constexpr int64_t kPixelsPerChannel = 4;  // beyond, tile registers wait longer for pixels than W takes to be packed
// Of X and C, that stay in the second-level cache while W streams past; twice as many for tile registers, 1.03 to 1.12
// times as fast: where they are, that cache has 2 MB.
constexpr int64_t kCacheBytes = 256 << 10;
constexpr int64_t kNearWeights = 1 << 20;  // bytes of W that stay in that cache of 2 MB
// Beyond, a tile's start and end are below 2 %, and many rows that are 4 KB apart would share a set of the cache.
constexpr int64_t kFewChannels = 256;
constexpr int kLineBytes = 64;       // of a cache line
constexpr int64_t kReduceStep = 32;  // pixels: a whole vector of bf16 pairs
// Pixels of dW that are added up in registers before they join its sums, which may lie in the last cache: 768, not 256,
// 1.13 times as fast on two threads, 1.02 on one. Tile registers want B in the first-level cache.
constexpr int64_t kReduceChunk = 768, kReduceChunkTiles = 256;
constexpr int64_t kSplitPixels = 256;       // of dW, at least, for each of the parts that its pixels are split into
constexpr int64_t kPanelBytes = 32 << 10;   // of B that all of a group's tiles take from the first-level cache
constexpr int64_t kLongestPiece = 1024;     // beyond, nothing is gained
constexpr int64_t kFewBlocks = 4;           // that read B too seldom to keep it near
constexpr int64_t kLeastRows = 12;          // of tiles that multiply faster than rows are packed for 16
constexpr double kPackCost = 16;            // of one element, in multiplications
constexpr int kMostDots = 4;                // columns: each costs about 1/16 of the vector they would leave idle
constexpr int64_t kStreamBytes = 4 << 20;   // of C: an eighth of a common last-level cache, of which X needs a part too
constexpr int64_t kPackedBytes = 64 << 20;  // of the weights that one task packs before it turns to pixels
constexpr int64_t kSplitElements = 64 << 10;  // dW up to this size is split over pixels, larger ones over channels

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
// Part `i` of `parts` nearly equal parts, in whole steps.
inline Range part_in_steps(int64_t size, int64_t parts, int64_t i, int64_t step) {
  const int64_t steps = (size + step - 1) / step;
  return {std::min(size, steps * i / parts * step), std::min(size, steps * (i + 1) / parts * step)};
}
// Part `i` of `parts` nearly equal parts.
inline Range part(int64_t size, int64_t parts, int64_t i) { return {size * i / parts, size * (i + 1) / parts}; }

struct Plan {
  int lanes, tile_rows, rows;  // most rows of a tile, and of the block that is finished together
  int64_t m, n;
  int64_t blocks;                     // of rows
  int64_t least_rows, larger_blocks;  // of a block; the first ones have a row more
  int64_t run;                        // columns that panels do not cross the multiples of
  int line_vectors;                   // that fill a cache line of C
  int dots;                           // last columns of a run that are summed up along k one by one
  int64_t panels_per_run, panels;
  int64_t beside = 1;        // panels that take a block of rows one after the other
  int64_t m_parts, n_parts;  // units of rows, and of panels
  int64_t piece = 0;         // values of k added up at a time, but for dW; 0: all
  bool at_once = false;      // dW over so few pixels that it runs like forward
  int64_t k_parts = 1;       // units of pixels (dW only), each with partial sums of its own
  bool within_runs = false;  // blocks end where a run of rows that lie evenly ends
  bool upright;              // C's rows are consecutive elements, its columns are not
  bool streamed = false;     // C bypasses the caches: it would not stay there until it is read
  int64_t units;             // of one product: m_parts * n_parts * k_parts

  // Columns of one panel: a run is shared out evenly in whole lines of C, so that no panel is a sliver.
  Range columns(int64_t panel) const {
    const int64_t start = panel / panels_per_run * run, i = panel % panels_per_run;
    const Range v = part_in_steps(ceil_div(run - dots, lanes), panels_per_run, i, line_vectors);
    return {start + v.begin * lanes, start + (i + 1 == panels_per_run ? run : v.end * lanes)};
  }
  // Rows of one block: shared out evenly too, but for upright blocks, which are whole squares. No division: this is
  // asked for every tile.
  Range rows_of(int64_t block) const {
    if (upright) return {block * rows, std::min((block + 1) * rows, m)};
    return {block * least_rows + std::min(block, larger_blocks),
            (block + 1) * least_rows + std::min(block + 1, larger_blocks)};
  }
  // Blocks from `block` on, before `end`, that have as many rows as it has.
  int64_t blocks_alike(int64_t block, int64_t end) const {
    if (upright) return 1;
    return (block < larger_blocks ? std::min(larger_blocks, end) : end) - block;
  }
  int dots_of(int64_t panel) const { return (panel + 1) % panels_per_run == 0 ? dots : 0; }
};

// Pixels of each of the nearly equal chunks a sum over `size` of them is done in.
inline int64_t chunk_of(int64_t size, int64_t wanted) {
  const int64_t chunks = std::max<int64_t>(1, size / wanted), steps = ceil_div(size, kReduceStep);
  return ceil_div(steps, chunks) * kReduceStep;
}

// Whether A can be read in vectors along k.
inline bool can_dot(const Gemm& g, const Tiling& tiling) {
  const bool pairs = tiling.pack == 2 && tiling.chunk == tiling.pack;
  if (g.pixels == Pixels::on_k || !(tiling.stored || pairs) || forced.dots == 0 || forced.packed == 1) return false;
  for (int i = 0; i < g.segments; ++i)
    if (g.segment[i].a.col.step[kRank - 1] != 1 || g.segment[i].k.count() % tiling.pack) return false;
  return true;
}

// Values of k that one block adds up before the next does. Tile registers wait for B unless it stays in the first-level
// cache for several blocks: 1.07 to 1.15 times as fast; vectors multiply too slowly to gain by that.
inline int64_t piece_of(int64_t k, int64_t columns, int64_t blocks, const Tiling& tiling) {
  if (forced.pieces == -1 ? tiling.chunk == tiling.pack || blocks < kFewBlocks : forced.pieces == 0) return 0;
  const int64_t near = kPanelBytes * tiling.lanes / (64 * columns) * tiling.pack;
  const int64_t length = std::min<int64_t>(near, forced.pieces == 1 ? 48 : kLongestPiece);
  if (k <= length * 9 / 8) return 0;
  return ceil_div(ceil_div(k, ceil_div(k, length)), tiling.chunk) * tiling.chunk;
}

inline Plan make_plan(const Gemm& g, int64_t products, const Tiling& tiling, int element_bytes, int threads) {
  Plan p;
  p.lanes = tiling.lanes;
  const bool in_tiles = tiling.chunk > tiling.pack;  // of AMX
  p.m = g.m.count(), p.n = g.n.count();
  const int64_t k = total_k(g), widest = int64_t(tiling.lanes) * tiling.vectors;
  const double flops = 2.0 * double(p.m) * double(p.n) * double(std::max<int64_t>(k, 1));

  // Panels stay within an image where its rows are long enough to be read in place; 3/4 of a tile is the break-even.
  const int64_t inner = g.n.size[kRank - 1];
  const int64_t idle = ceil_div(inner, tiling.lanes) * tiling.lanes - inner;
  // What is packed anyway may span images, at a cost for C, which long sums hide: 49 pixels would leave a quarter idle.
  // Tile registers multiply so fast that this pays only where W comes from far for every panel: 320 -> 1280 at 7x7
  // without it 1.3 to 1.6 times as fast, 512 -> 2048 no faster.
  const bool near = in_tiles && p.m * k * element_bytes <= kNearWeights;
  const bool spans = !tiling.stored && !near && k >= kFewChannels && idle * 7 > inner;
  // A stride is packed in any case: where tiles are narrow enough for rows of 28 pixels, they span those too (1.3).
  const bool strided = tiling.narrow && g.segments > 0 && g.segment[0].b.col.step[kRank - 1] != 1;
  p.run = g.pixels == Pixels::on_n && inner >= widest * 3 / 4 && !spans && !strided ? inner : p.n;
  p.dots = p.run % tiling.lanes <= kMostDots && can_dot(g, tiling) ? int(p.run % tiling.lanes) : 0;
  // C with consecutive rows is stored in squares of `lanes` rows, which tiles of 4 or 8 rows make up without remainder.
  p.upright = g.pixels != Pixels::on_k && g.m.count() == g.m.size[kRank - 1] && g.c.row.step[kRank - 1] == 1 &&
              (g.c.col.step[kRank - 1] != 1 || p.n == 1);
  int most_vectors = p.upright && tiling.rows[0] != tiling.lanes ? std::min(tiling.vectors, 3) : tiling.vectors;
  // Pixels that are read where they lie, in rows of k.
  const bool in_place = g.pixels == Pixels::on_n && tiling.stored && tiling.pack == 1 && g.segments > 0 &&
                        g.segment[0].b.col.step[kRank - 1] == 1;
  // Of those, long panels come from the second-level cache: 8 x 3 vectors take 3/4 as much as 6 x 4, 1.01 to 1.05.
  if (in_place && k > kFewChannels) most_vectors = std::min(most_vectors, 3);
  if (forced.vectors > 0) most_vectors = std::min(most_vectors, forced.vectors);
  const int64_t run_vectors = ceil_div(p.run - p.dots, tiling.lanes);
  const bool whole_lines = g.c.row.step[kRank - 1] * element_bytes % kLineBytes == 0;
  p.line_vectors = !p.upright && whole_lines ? std::max(1, kLineBytes / (tiling.lanes * element_bytes)) : 1;
  if (most_vectors % p.line_vectors || run_vectors <= p.line_vectors) p.line_vectors = 1;
  // Few channels: the fewest tiles, the widest of those. 144 columns are 3 panels of 3 vectors, 96 of bf16 are 3 panels
  // of a line each.
  const auto panels_of = [&](int64_t vectors) { return std::max<int64_t>(1, ceil_div(run_vectors, vectors)); };
  const auto tiles_of = [&](int64_t vectors) { return panels_of(vectors) * ceil_div(p.m, tiling.rows[vectors - 1]); };
  int64_t vectors = std::clamp<int64_t>(run_vectors, 1, most_vectors);
  if (!p.upright && k <= kFewChannels)
    for (int64_t v = vectors / p.line_vectors * p.line_vectors; v > 0; v -= p.line_vectors)
      if (tiles_of(v) < tiles_of(vectors)) vectors = v;
  p.panels_per_run = panels_of(vectors);
  // Of two or three panels, none is half as wide as another for the sake of whole lines: 96 columns of bf16 in 3 and 3
  // vectors, not 2 and 4, 1.04 times as fast (not measured with tile registers).
  if (!in_tiles && p.panels_per_run < 4 && ceil_div(run_vectors, p.line_vectors) % p.panels_per_run != 0)
    p.line_vectors = 1;
  p.panels = p.panels_per_run * (p.n / p.run);
  p.tile_rows = tiling.rows[vectors - 1];
  if (p.upright && p.tile_rows != tiling.lanes) p.tile_rows = std::min(p.tile_rows >= 8 ? 8 : 4, tiling.lanes);
  p.rows = int(std::min<int64_t>(p.upright ? tiling.lanes : p.tile_rows, p.m));
  p.blocks = ceil_div(p.m, p.rows);

  const int64_t tasks = std::max<int64_t>(1, std::min<int64_t>(threads, int64_t(flops * products / kGrainFlops)));
  const int64_t wanted = tasks == 1 ? 1 : ceil_div(4 * tasks, products);  // units of one product, for balance
  const int64_t weights = g.pixels == Pixels::on_n ? p.m : p.n, weight_parts = ceil_div(weights * k * 4, kPackedBytes);
  // At least `least` parts, and as many as make the units a multiple of the tasks, if there are so many.
  const auto shared = [&](int64_t least, int64_t most, int64_t others) {
    int64_t parts = std::clamp<int64_t>(least, 1, most);
    while (parts < most && parts < least + tasks && parts * others % tasks != 0) ++parts;
    return parts;
  };
  switch (g.pixels) {
    case Pixels::on_n: {
      if (forced.beside == -1 ? tiling.narrow : forced.beside == 1) {
        const int64_t near = kBesideBytes / (std::max<int64_t>(1, k) * vectors * tiling.lanes * 4);
        p.beside = std::clamp<int64_t>(std::min(near, p.panels / wanted), 1, kMostBeside);
      }
      p.n_parts = ceil_div(p.panels, p.beside);
      const bool few = p.n_parts % tasks != 0 && p.n_parts < kEvenUnits * tasks;
      // Of pixels in place, as many parts of W as leave it in a second-level cache of 1 MB while they pass.
      const int64_t parts_near = in_place && p.n_parts > 1 ? ceil_div(p.m * k * element_bytes, kNearWeights / 2) : 1;
      p.m_parts =
          std::max(few ? std::max(ceil_div(tasks, p.n_parts), parts_near) : ceil_div(wanted, p.n_parts), weight_parts);
      p.m_parts = std::min(p.blocks, p.m_parts);
      // A unit packs its X, or copies its last columns, whatever others did: of few, as many as cost the busiest task
      // the least.
      const auto cost = [&](int64_t parts) {
        const double rows = double(ceil_div(p.blocks, parts) * p.rows) + (in_place ? 1 : kPackCost);
        return double(ceil_div(parts * p.n_parts, tasks)) * rows;
      };
      for (int64_t parts = p.m_parts + 1, most = std::min(p.blocks, p.m_parts + tasks - 1); few && parts <= most;
           ++parts)
        if (cost(parts) < cost(p.m_parts)) p.m_parts = parts;
      // A panel or two more than fit, so that all tasks have as many; not so many that tiles become slivers.
      const int64_t even = ceil_div(p.panels, tasks) * tasks;
      if (few && p.m_parts * p.n_parts % tasks != 0 && p.beside == 1 && p.n == p.run && 2 * even <= 3 * p.panels &&
          even <= ceil_div(run_vectors, p.line_vectors))
        p.n_parts = p.panels = p.panels_per_run = even;
      // A unit is begun once for all its panels: 32 -> 16 at 112x112 1.07 to 1.18 times as fast as with one for each.
      if (p.beside == 1) p.n_parts = std::min(p.n_parts, tasks);
      break;
    }
    case Pixels::on_m: {
      const int64_t fitting = std::max<int64_t>(
          1, (in_tiles ? 2 : 1) * kCacheBytes / std::max<int64_t>(1, (k + p.n) * element_bytes * p.rows));
      p.m_parts = std::min(p.blocks, std::max(ceil_div(p.blocks, std::max<int64_t>(fitting, 8)), wanted));
      p.n_parts = std::min(p.panels, std::max(p.m_parts >= tasks ? 1 : ceil_div(tasks, p.m_parts), weight_parts));
      // Few pixels: share out the weights instead, so that hardly any thread packs what another packs too; unless one
      // multiplied more for that than it packed less: 80 columns in 2 and 3 vectors.
      const int64_t lines = ceil_div(ceil_div(run_vectors, p.line_vectors), p.panels) * p.line_vectors;
      const double widest = double(lines * p.panels) / double(std::max<int64_t>(1, run_vectors));  // of the mean
      const double uneven = (widest - 1) * std::min(1.0, double(tasks) / double(p.panels));
      const bool balanced =
          in_tiles ? p.m <= kPixelsPerChannel * p.n : uneven * double(p.m) <= kPackCost * double(tasks - 1);
      if (tasks > 1 && p.m < kFewPixels && balanced) {
        // All panels of a thread one after the other, on pixels that stay in the cache: tile registers are so fast that
        // reading X once for each panel costs up to a third.
        if (in_tiles && p.panels % tasks == 0 && p.m * k * element_bytes > 3 * kCacheBytes) {
          p.n_parts = tasks, p.m_parts = std::min(p.blocks, ceil_div(p.blocks, std::max<int64_t>(fitting, 8)));
        } else {
          p.n_parts = p.panels, p.m_parts = shared(ceil_div(wanted, p.panels), p.blocks, p.panels);
        }
      }
      break;
    }
    case Pixels::on_k: {
      // The split over pixels decides the order of summation, so it depends on the shape alone, not on the threads.
      if (forced.split == 1 && k > 0) p.k_parts = std::min<int64_t>(8, ceil_div(k, kReduceStep));
      if (forced.split == -1 && p.m * p.n <= kSplitElements)
        while (p.k_parts < 8 && 2 * p.k_parts <= std::min(int64_t(flops / kGrainFlops), k / kSplitPixels))
          p.k_parts *= 2;
      p.at_once = forced.at_once != 0 && p.k_parts == 1 && k <= kReduceAtOnce &&
                  g.segment[0].k.count() / g.segment[0].k.size[kRank - 1] <= 8;
      // A unit packs all it needs of dZ and X itself: as few units as there are tasks, and nearly square.
      const int64_t share = ceil_div(tasks, p.k_parts * products);
      double least = 0;
      for (int64_t n_parts = 1; n_parts <= std::min(share, p.panels); ++n_parts) {
        const int64_t m_parts = std::min(p.blocks, ceil_div(share, n_parts));
        const double rows = double(ceil_div(p.blocks, m_parts)) * p.rows,
                     columns = double(p.n) / double(p.panels) * double(ceil_div(p.panels, n_parts));
        const double cost = double(ceil_div(m_parts * n_parts * p.k_parts * products, tasks)) *
                            (rows * columns + kPackCost * (rows + columns));
        if (least == 0 || cost < least) least = cost, p.m_parts = m_parts, p.n_parts = n_parts;
      }
      break;
    }
  }
  // Tile registers read rows that lie evenly: 14 of an image's 14 or 28 do, with stride 2 too.
  const int64_t even_rows = g.m.size[kRank - 1];
  if (in_tiles && !p.upright && even_rows != p.m) {
    const int64_t rows = ceil_div(even_rows, ceil_div(even_rows, p.tile_rows));
    p.within_runs = even_rows % rows == 0 && rows >= kLeastRows;
    if (p.within_runs) p.rows = int(rows), p.blocks = p.m / rows, p.m_parts = std::min(p.m_parts, p.blocks);
  }
  if (!p.upright && !p.within_runs) {
    p.blocks = std::min(p.m, ceil_div(p.blocks, p.m_parts) * p.m_parts);
    p.rows = int(ceil_div(p.m, p.blocks));
  }
  p.least_rows = p.m / p.blocks, p.larger_blocks = p.m % p.blocks;
  p.units = p.m_parts * p.n_parts * p.k_parts;
  p.piece = piece_of(k, vectors * tiling.lanes, ceil_div(p.blocks, p.m_parts), tiling);
  const bool large = p.m * p.n * products * element_bytes >= kStreamBytes;
  p.streamed = g.pixels != Pixels::on_k && !p.upright && (p.m == 1 || whole_lines) &&
               (forced.streamed == -1 ? large : forced.streamed == 1);
  return p;
}

// Units of one task: about a megaflop, and no more tasks than threads.
inline int64_t grain(const Plan& p, const Gemm& g, int64_t products, int threads) {
  const double flops = 2.0 * double(p.m) * double(p.n) * double(std::max<int64_t>(total_k(g), 1)) * double(products);
  const int64_t tasks = std::max<int64_t>(1, std::min<int64_t>(threads, int64_t(flops / kGrainFlops)));
  return ceil_div(p.units * products, tasks);
}

}  // namespace pw::cpu
