// ThreadSanitizer does not see what an OpenMP runtime without instrumentation orders: that a parallel region begins
// after what its caller wrote, and that the caller goes on after what the threads wrote. Loaded before that runtime,
// this says so.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

namespace {

using Body = void (*)(void*);

struct Region {
  Body body;
  void* data;
};

void run(void* argument) {
  Region& region = *static_cast<Region*>(argument);
  __tsan_acquire(&region.body);
  region.body(region.data);
  __tsan_release(&region.data);
}

}  // namespace

extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(Body, void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region.body);
  parallel(run, &region, threads, flags);
  __tsan_acquire(&region.data);
}
