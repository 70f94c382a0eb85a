// Runs parts of a backward pass (chunks.h): for every chunk of pixels
//
//     dZ = dY activation'(saved),   db += sum of dZ,   dX = W^T dZ,   dW += dZ X^T
#pragma once
#include <optional>

#include "chunks.h"
#include "gemm.h"
#include "grad.h"

namespace pw::PW_ISA {

template <class T, class D>
class ChunkRunner {
  using Acc = typename D::Acc;
  static constexpr int d = kRank - 1;

 public:
  explicit ChunkRunner(const cpu::Chunked& job) : job_(job), products_(job.products) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const Range chunks = cpu::part(job_.chunks.count, job_.chunks.parts, part);
      for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        ahead_ = Ahead();
        if (job_.derives() && chunk + 1 < chunks.end) look_ahead(chunk + 1);
        run_chunk(job_.chunks.box(chunk), part, chunk == chunks.begin);
      }
    }
  }

 private:
  using Box = cpu::Chunks::Box;
  // One product of the current chunk, and what is kept for those of the same size.
  struct Product {
    Gemm gemm;
    cpu::Job job;
    std::optional<Runner<T, D>> runner;
  };

  static Matrix moved(Matrix m, int64_t elements) {
    if (m.data) m.data = static_cast<T*>(m.data) + elements;
    return m;
  }
  static Matrix turned(Matrix m) {
    std::swap(m.row, m.col);
    return m;
  }

  // Where dZ of a chunk lies, (pixels, channels): as dY, without gaps but for those that keep lines out of one set.
  Matrix scratch(const Box& box) {
    static thread_local Scratch<T> scratch;
    const int64_t channels = job_.pass.channels;
    const bool inner = cpu::channels_inner(job_.pass);
    const int64_t* size = box.axis.size;
    int64_t pitch = inner ? channels : size[d];
    if (pitch > 1) pitch = cpu::ceil_div(pitch, kLine) * kLine;
    if (pitch * int64_t(sizeof(T)) % kCrowded == 0) pitch += kLine;
    Matrix m;
    int64_t step = inner ? pitch * size[d] : pitch * channels;
    m.row.step[d] = inner ? pitch : 1, m.col.step[d] = inner ? 1 : pitch;
    for (int i = d - 1; i >= 0; step *= size[i--]) m.row.step[i] = step;
    m.data = scratch.get(step);
    return m;
  }

  void run_chunk(const Box& box, int64_t part, bool first) {
    ActivationGrad pass = job_.pass;
    pass.pixels = box.axis;
    for (Matrix* m : {&pass.dy, &pass.saved, &pass.dz}) *m = moved(*m, box.first(m->row));
    if (job_.derives() && !pass.dz.data) pass.dz = scratch(box);
    if (job_.derives() || job_.db) derive(pass, part, first);
    const Matrix dz = job_.derives() ? pass.dz : pass.dy;
    for (int i = 0; i < job_.products; ++i) multiply(products_[i], *job_.gemms[i], i, box, dz, part, first);
  }

  // Has the products fetch dY, and what was saved, of the next chunk.
  void look_ahead(int64_t chunk) {
    const Box box = job_.chunks.box(chunk);
    ahead_rows_.clear();
    const ActivationGrad& pass = job_.pass;
    const bool inner = cpu::channels_inner(pass);
    for (const Matrix* m : {&pass.dy, &pass.saved}) {
      const char* first = static_cast<const char*>(moved(*m, box.first(m->row)).data);
      if (inner)
        for (int64_t i = 0; i < box.axis.count(); ++i)
          ahead_rows_.push_back(first + offset(box.axis, m->row, i) * int64_t(sizeof(T)));
      else
        for (int64_t i = 0; i < box.axis.count(); i += box.axis.size[d])
          for (int64_t c = 0; c < pass.channels; ++c)
            ahead_rows_.push_back(first + (offset(box.axis, m->row, i) + c * m->col.step[d]) * int64_t(sizeof(T)));
    }
    ahead_.row = ahead_rows_.data(), ahead_.end = ahead_.row + ahead_rows_.size();
    ahead_.bytes = (inner ? pass.channels : box.axis.size[d]) * int64_t(sizeof(T));
    int64_t turns = 0;  // one for each row of each tile
    for (const Product& p : products_)
      if (p.runner) turns += p.job.plan.m * p.job.plan.panels;
    const int64_t lines = int64_t(ahead_rows_.size()) * cpu::ceil_div(ahead_.bytes, 64);
    if (turns && lines >= kLeastAhead * turns) ahead_.lines = int(cpu::ceil_div(lines, turns));
  }

  void derive(const ActivationGrad& pass, int64_t part, bool first) {
    const int64_t rows = cpu::grad_rows(pass), channels = pass.channels;
    rows_.resize(rows * channels);
    activation_grad_rows<T, D>(pass, rows_.data(), 0, rows);
    if (!job_.db) return;
    double* db = job_.db + part * channels;
    if (first) std::fill(db, db + channels, 0.0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < channels; ++c) db[c] += rows_[r * channels + c];
  }

  void multiply(Product& p, const Gemm& whole, int index, const Box& box, const Matrix& dz, int64_t part, bool first) {
    Gemm g = whole;
    Segment& s = g.segment[0];
    if (g.pixels == Pixels::on_k) {
      s.k = box.axis, s.a = turned(dz), s.b = moved(s.b, box.first(s.b.row));
    } else if (g.pixels == Pixels::on_m) {
      g.m = box.axis, s.a = dz, g.c = moved(g.c, box.first(g.c.row));
    } else {
      g.n = box.axis, s.b = turned(dz), g.c = moved(g.c, box.first(g.c.col));
    }
    const bool alike = p.runner && std::equal(size_, size_ + kRank, box.axis.size);
    p.gemm = cpu::as_chunked(g, whole, job_.tiling);
    if (!alike) p.runner.reset(), p.job = {&p.gemm, cpu::chunk_plan(job_, p.gemm)};
    if (whole.pixels == Pixels::on_k) {
      p.job.sums = static_cast<Acc*>(job_.sums[index]) + part * p.job.plan.m * p.job.plan.n;
      p.job.add = !first;
    }
    if (!alike) p.runner.emplace(p.job, index);
    p.runner->run_on_new_pixels(&ahead_);
    if (index + 1 == job_.products) std::copy(box.axis.size, box.axis.size + kRank, size_);
  }

  static constexpr int64_t kLine = 64 / sizeof(T);  // elements
  static constexpr int64_t kLeastAhead = 4;         // lines for each row of a tile: fewer come in time by themselves

  const cpu::Chunked& job_;
  std::vector<Product> products_;
  int64_t size_[kRank] = {};  // of the last chunk
  std::vector<Acc> rows_;     // sums per channel
  Ahead ahead_;
  std::vector<const char*> ahead_rows_;
};

}  // namespace pw::PW_ISA
