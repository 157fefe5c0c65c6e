// Memory of results.
#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Asks for large pages: fresh memory then costs less than what is computed into it. A hint, which may be ignored.
extern "C" __attribute__((visibility("default"))) void octavo_prefer_large_pages(void* memory, int64_t size) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 1 << 21;
    uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) & ~(PAGE - 1);
    uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<size_t>(size)) & ~(PAGE - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(memory), static_cast<void>(size);
#endif
}
