// Threads: those of the OpenMP runtime that torch has loaded, since a second pool would wait on the same cores, spinning.
// Where none is loaded, threads of our own.
#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

// What `#pragma omp parallel` becomes; GNU's runtime and LLVM's have it alike.
using OpenMp = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Work {
    int64_t count, num_parts;
    void (*task)(void*, int64_t, int64_t);
    void* context;
    std::atomic<int64_t> next{0};
};

// Takes parts until there are none, so that fewer threads than asked for do all the work, too.
void take_parts(void* pointer) {
    Work& work = *static_cast<Work*>(pointer);
    for (int64_t part = work.next++; part < work.num_parts; part = work.next++) {
        int64_t begin = work.count * part / work.num_parts;
        int64_t end = work.count * (part + 1) / work.num_parts;
        work.task(work.context, begin, end);
    }
}

}  // namespace

extern "C" void octavo_parallel(int64_t count, int64_t num_threads, void (*task)(void*, int64_t, int64_t), void* context) {
    if (count < 2 || num_threads < 2) {
        if (count > 0) task(context, 0, count);
        return;
    }
    static const auto openmp = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    int64_t threads = num_threads < count ? num_threads : count;
    // A few parts for each thread: where other programs hold up one, the others do more.
    int64_t num_parts = threads * 4 < count ? threads * 4 : count;
    Work work{count, num_parts, task, context};
    if (openmp != nullptr) {
        openmp(take_parts, &work, static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(take_parts, &work);
    take_parts(&work);
    for (std::thread& other : others) other.join();
}
