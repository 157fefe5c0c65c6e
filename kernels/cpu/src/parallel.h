// Work divided over threads. Compiled once (base/parallel.cpp), called from the code for every instruction set.
#pragma once

#include <cstdint>

// Calls task(context, begin, end) for parts of [0, count), on at most `num_threads` threads at once.
extern "C" void octavo_parallel(int64_t count, int64_t num_threads, void (*task)(void*, int64_t, int64_t), void* context);

namespace {

// The same for a callable of (begin, end).
template <class Task>
void parallel(int64_t count, int64_t num_threads, Task task) {
    octavo_parallel(
        count, num_threads,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Task*>(context))(begin, end); }, &task);
}

}  // namespace
