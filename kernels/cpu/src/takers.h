// What becomes of decoded values: each comes with its place, one by one or as a vector of eight. PLACE is the vector's
// among those that are decoded together.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Writes them to memory.
struct Store {
    float* result;

    void one(int64_t at, float value) { result[at] = value; }

#if defined(__AVX2__)
    template <int PLACE>
    void vector(int64_t at, __m256 values) {
        _mm256_storeu_ps(result + at, values);
    }
#endif
};

#if defined(__AVX2__)
inline float total(const __m256 (&sums)[4]) {
    __m256 all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(half) + _mm_cvtss_f32(_mm_movehdup_ps(half));
}

// Multiplies them with a row of x and sums.
struct Dot {
    const float* x;
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    float rest = 0.0f;

    void one(int64_t at, float value) { rest += x[at] * value; }

    template <int PLACE>
    void vector(int64_t at, __m256 values) {
        sums[PLACE] = _mm256_fmadd_ps(_mm256_loadu_ps(x + at), values, sums[PLACE]);
    }

    float result() const { return total(sums) + rest; }
};
#endif

}  // namespace
