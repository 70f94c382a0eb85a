// Operands for kernel_check.cpp: small integers that end right before a page that must not be touched, NaN between
// rows.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <limits>

#include "cuda/plan.h"

namespace pw {

// `count` elements that end right before a page that must not be touched.
template <class T>
T* guarded(int64_t count) {
  const size_t page = sysconf(_SC_PAGESIZE), bytes = count * sizeof(T), pages = (bytes + page - 1) / page * page;
  char* start = static_cast<char*>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0));
  mprotect(start + pages, page, PROT_NONE);
  return reinterpret_cast<T*>(start + pages - bytes);
}

template <class T>
T* filled(int64_t count) {
  T* data = guarded<T>(count);
  for (int64_t i = 0; i < count; ++i) data[i] = narrow<T>(float((i * 7 + count) % 13) - 6);
  return data;
}

template <class T>
T* unwritten(int64_t count) {
  T* data = guarded<T>(count);
  for (int64_t i = 0; i < count; ++i) data[i] = narrow<T>(std::numeric_limits<float>::quiet_NaN());
  return data;
}

inline Axis axis(int64_t count) { return {{1, 1, 1, count}}; }
inline Steps steps(int64_t step) { return {{0, 0, 0, step}}; }
inline Matrix rows(void* data, int64_t pitch) { return {data, steps(pitch), steps(1)}; }
inline Matrix columns(void* data, int64_t pitch) { return {data, steps(1), steps(pitch)}; }
template <class T>
float at(const Matrix& x, int64_t i, int64_t j) {
  return widen(static_cast<T*>(x.data)[i * x.row.step[kRank - 1] + j * x.col.step[kRank - 1]]);
}

// A matrix of small integers whose rows (or columns) start at multiples of `pitch` elements, with NaN between them.
template <class T>
Matrix padded(int64_t m, int64_t n, bool by_rows, int64_t pitch, bool fill = true) {
  const int64_t inner = by_rows ? n : m, outer = by_rows ? m : n, step = (inner + pitch - 1) / pitch * pitch;
  T* data = unwritten<T>(outer * step);
  for (int64_t i = 0; fill && i < m * n; ++i)
    data[i / inner * step + i % inner] = narrow<T>(float((i * 7 + m * n) % 13) - 6);
  return by_rows ? rows(data, step) : columns(data, step);
}

// A mask of `rows` rows, the bits that `passes` tells and ones beyond them; or one to be written.
inline Mask bits(int64_t rows, int64_t count, const std::function<bool(int64_t, int64_t)>& passes = {}) {
  Mask mask{nullptr, divide_up(count, 32)};
  mask.words = guarded<uint32_t>(rows * mask.pitch);
  for (int64_t i = 0; i < rows * mask.pitch; ++i) mask.words[i] = ~0u;
  for (int64_t i = 0; passes && i < rows * count; ++i)
    if (!passes(i / count, i % count)) mask.words[i / count * mask.pitch + i % count / 32] &= ~(1u << i % count % 32);
  return mask;
}

}  // namespace pw
