// The float kernels on the emulator without torch: products and activation gradients with tails on every side, operands
// that end at forbidden pages, outputs that start as NaN. Exits with 1 at a wrong value; test_planted_bugs.py compiles
// it against kernels with one mistake each, and expects anything but 0.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include "cuda/launch_f32.cu"
#include "cuda/plan.h"

namespace {

using namespace pw;

// `count` floats that end right before a page that must not be touched.
float* guarded(int64_t count) {
  const size_t page = sysconf(_SC_PAGESIZE), bytes = count * sizeof(float), pages = (bytes + page - 1) / page * page;
  char* start = static_cast<char*>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0));
  mprotect(start + pages, page, PROT_NONE);
  return reinterpret_cast<float*>(start + pages - bytes);
}

float* filled(int64_t count) {
  float* data = guarded(count);
  for (int64_t i = 0; i < count; ++i) data[i] = float((i * 7 + count) % 13) - 6;
  return data;
}

float* unwritten(int64_t count) {
  float* data = guarded(count);
  for (int64_t i = 0; i < count; ++i) data[i] = std::numeric_limits<float>::quiet_NaN();
  return data;
}

Axis axis(int64_t count) { return {{1, 1, 1, count}}; }
Steps steps(int64_t step) { return {{0, 0, 0, step}}; }
Matrix rows(float* data, int64_t pitch) { return {data, steps(pitch), steps(1)}; }
float at(const Matrix& x, int64_t i, int64_t j) {
  return static_cast<float*>(x.data)[i * x.row.step[kRank - 1] + j * x.col.step[kRank - 1]];
}

// All values are small integers: sums are exact in any order, so that results must be equal.
bool check_gemm(int64_t m, int64_t n, int64_t k, const Tuning& tuning, emulate::Schedule schedule) {
  Gemm g;
  g.m = axis(m), g.n = axis(n);
  for (int64_t part : {k / 3, k - k / 3}) {
    Segment& s = g.segment[g.segments++];
    s.k = axis(part);
    s.a = rows(filled(m * part), part);
    s.b = rows(filled(part * n), n);
  }
  g.c = rows(unwritten(m * n), n);
  g.residual = rows(filled(m * n), n);
  g.bias = filled(m);
  g.activation.kind = Act::relu;
  std::vector<char> workspace(workspace_bytes(plan_gemm(g, 1, tuning), g));
  launch_gemm_as<float>(&g, 1, workspace.data(), &schedule, tuning);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double want = static_cast<const float*>(g.bias)[i] + at(g.residual, i, j);
      for (int s = 0; s < g.segments; ++s)
        for (int64_t l = 0; l < g.segment[s].k.count(); ++l)
          want += at(g.segment[s].a, i, l) * at(g.segment[s].b, l, j);
      if (at(g.c, i, j) == std::max(want, 0.0)) continue;
      std::printf("gemm %ldx%ldx%ld: C[%ld, %ld] is %g, expected %g\n", long(m), long(n), long(k), long(i), long(j),
                  at(g.c, i, j), std::max(want, 0.0));
      return false;
    }
  return true;
}

bool check_activation_grad(int64_t pixels, int64_t channels, const Tuning& tuning, emulate::Schedule schedule) {
  ActivationGrad a;
  a.activation.kind = Act::relu;
  a.pixels = axis(pixels), a.channels = channels;
  a.dy = rows(filled(pixels * channels), channels);
  a.saved = rows(filled(pixels * channels), channels);
  a.dz = rows(unwritten(pixels * channels), channels);
  float* db = unwritten(channels);
  a.db = db;
  std::vector<char> workspace(workspace_bytes(plan_activation_grad(a, tuning), a));
  launch_activation_grad_as<float>(a, workspace.data(), &schedule, tuning);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const float want = at(a.saved, p, c) <= 0 ? 0 : at(a.dy, p, c);
      if (at(a.dz, p, c) != want) return std::printf("dz[%ld, %ld] is %g\n", long(p), long(c), at(a.dz, p, c)), false;
      sum += want;
    }
    if (db[c] != sum) return std::printf("db[%ld] is %g, expected %g\n", long(c), db[c], sum), false;
  }
  return true;
}

bool check_distances() {
  Gemm gemms[3];
  float c[4];
  for (int i : {0, 1, 2}) gemms[i].m = gemms[i].n = axis(1), gemms[i].c = rows(c + i + i / 2, 1);
  emulate::Schedule schedule;
  return !launch_gemm_as<float>(gemms, 2, nullptr, &schedule, {}) &&
         launch_gemm_as<float>(gemms, 3, nullptr, &schedule, {});
}

}  // namespace

int main() {
  const Tuning one_tile_a_block{1000, 1000, 1000}, large_tiles{1, 1000, 1}, split{16, 2, 3};
  for (const emulate::Schedule schedule :
       {emulate::Schedule{}, emulate::Schedule{true, 1}, emulate::Schedule{true, 2}}) {
    const bool right = check_gemm(70, 67, 90, one_tile_a_block, schedule) &&
                       check_gemm(130, 129, 50, large_tiles, schedule) && check_gemm(65, 10, 130, split, schedule) &&
                       check_activation_grad(200, 40, split, schedule);
    if (!right) return 1;
  }
  if (!check_distances()) return std::printf("unequal distances between products are not refused\n"), 1;
  return 0;
}
