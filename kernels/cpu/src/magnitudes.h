// Largest magnitudes of blocks, as the bits of fp32 numbers: without a sign these are ordered as the numbers, NaN last.
#pragma once

#include "layout.h"
#include "vector.h"

namespace {

inline int32_t largest_lane(Ints x) {
    int32_t largest = 0;
    for (int64_t lane = 0; lane < WIDTH; ++lane) largest = x[lane] > largest ? x[lane] : largest;
    return largest;
}

inline Ints larger(Ints x, Ints y) { return x > y ? x : y; }

template <class Dtype>
inline Ints magnitude_bits(const typename Dtype::Stored* from, int64_t count) {
    return bits_of(Dtype::load(from, count)) & MAGNITUDE;
}

// Raises `largest`, one for each block of `block` consecutive elements, to the magnitudes of a piece.
template <class Dtype>
__attribute__((noinline)) void raise_to_magnitudes(const typename Dtype::Stored* x, int64_t count, int64_t block, int32_t* largest) {
    if (block == 1) {
        for (int64_t i = 0; i < count; i += WIDTH) {
            int64_t some = count - i < WIDTH ? count - i : WIDTH;
            write(largest + i, larger(read<Ints>(largest + i, some), magnitude_bits<Dtype>(x + i, some)), some);
        }
        return;
    }
    for (int64_t first = 0; first < count; first += block, ++largest) {
        int64_t end = count - first < block ? count : first + block;
        Ints found{}, second{};
        int64_t i = first;
        for (; i + 2 * WIDTH <= end; i += 2 * WIDTH) {
            found = larger(found, magnitude_bits<Dtype>(x + i, WIDTH));
            second = larger(second, magnitude_bits<Dtype>(x + i + WIDTH, WIDTH));
        }
        for (; i < end; i += WIDTH) {
            found = larger(found, magnitude_bits<Dtype>(x + i, end - i < WIDTH ? end - i : WIDTH));
        }
        int32_t all_of_them = largest_lane(larger(found, second));
        *largest = all_of_them > *largest ? all_of_them : *largest;
    }
}

}  // namespace
