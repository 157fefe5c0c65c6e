// Vectors of fp32 numbers in registers, and their elements in memory as fp32, bf16 or fp16.
//
// The compiler's vector extensions, so that one text serves every instruction set; everything is in an unnamed namespace,
// since the linker would otherwise keep one of the versions compiled for different instruction sets for all.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t WIDTH = 16;
#elif defined(__AVX2__)
constexpr int64_t WIDTH = 8;
#else
constexpr int64_t WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));

inline Floats all(float value) { return value - Floats{}; }
inline Ints bits_of(Floats x) { return reinterpret_cast<Ints>(x); }
inline Floats floats_of(Ints x) { return reinterpret_cast<Floats>(x); }

constexpr int32_t SIGN = INT32_MIN;
constexpr int32_t MAGNITUDE = INT32_MAX;

inline Floats magnitude(Floats x) { return floats_of(bits_of(x) & MAGNITUDE); }
inline Floats with_sign_of(Floats x, Floats sign) { return floats_of((bits_of(x) & MAGNITUDE) | (bits_of(sign) & SIGN)); }
inline Ints is_nan(Floats x) { return x != x; }
inline Floats quiet(Floats x) { return x == x ? x : all(__builtin_nanf("")); }

// x + y · z for products that need no rounding: with fused instructions or without, the same numbers.
inline Floats plus_exact_product(Floats x, Floats y, float z) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_fmadd_ps(
        reinterpret_cast<__m512>(y), _mm512_set1_ps(z), reinterpret_cast<__m512>(x)));
#elif defined(__FMA__)
    return reinterpret_cast<Floats>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(y), _mm256_set1_ps(z), reinterpret_cast<__m256>(x)));
#else
    return x + y * z;
#endif
}

// NaN stays NaN, as in torch.clamp.
inline Floats clamped(Floats x, float low, float high) {
    x = x < low ? all(low) : x;
    return x > high ? all(high) : x;
}

// Reads or writes the first `count` of WIDTH elements; a constant WIDTH where all are there costs nothing.
template <class Vector, class T>
inline Vector read(const T* from, int64_t count) {
    Vector x{};
    if (count == WIDTH) {
        memcpy(&x, from, sizeof x);
    } else {
        memcpy(&x, from, static_cast<size_t>(count) * sizeof(T));
    }
    return x;
}

template <class Vector, class T>
inline void write(T* to, Vector x, int64_t count) {
    if (count == WIDTH) {
        memcpy(to, &x, sizeof x);
    } else {
        memcpy(to, &x, static_cast<size_t>(count) * sizeof(T));
    }
}

struct Fp32 {
    using Stored = float;
    static Floats load(const float* from, int64_t count) { return read<Floats>(from, count); }
    static void store(float* to, Floats x, int64_t count) { write(to, x, count); }
    static Floats rounded(Floats x) { return x; }
};

// Bits whose upper halves are zero, and without these. Of the general conversions, compilers make more than is needed.
#if defined(__AVX2__) && !defined(__AVX512F__)
inline Bytes lowest_bytes(Ints x) {
    const __m256i every_fourth = _mm256_set1_epi64x(0x0C080400);
    __m256i found = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), every_fourth);
    __m128i first = _mm256_castsi256_si128(found), second = _mm256_extracti128_si256(found, 1);
    return reinterpret_cast<Bytes>(_mm_cvtsi128_si64(_mm_unpacklo_epi32(first, second)));
}
inline Bits widened(Halves x) { return reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x))); }
inline Halves narrowed(Bits x) {
    __m256i bits = reinterpret_cast<__m256i>(x);
    return reinterpret_cast<Halves>(_mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}
#else
inline Bytes lowest_bytes(Ints x) { return __builtin_convertvector(x, Bytes); }
inline Bits widened(Halves x) { return __builtin_convertvector(x, Bits); }
inline Halves narrowed(Bits x) { return __builtin_convertvector(x, Halves); }
#endif

struct Bf16 {
    using Stored = uint16_t;
    static Floats load(const uint16_t* from, int64_t count) {
        return reinterpret_cast<Floats>(widened(read<Halves>(from, count)) << 16);
    }
    static void store(uint16_t* to, Floats x, int64_t count) { write(to, narrowed(high_half(x)), count); }
    static Floats rounded(Floats x) { return reinterpret_cast<Floats>(high_half(x) << 16); }

   private:
    // To nearest, ties to even; what is added leaves NaN a NaN, unless all its bits are set: see `quiet`.
    static Bits high_half(Floats x) {
        Bits bits = reinterpret_cast<Bits>(x);
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    }
};

#if !defined(__F16C__)
inline float half_to_float(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = (half >> 10) & 0x1F, mantissa = half & 0x3FF;
    float value = static_cast<float>(mantissa) * 0x1p-24f;  // exact, for subnormal numbers and zero
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (exponent == 31) bits = 0x7F800000 | mantissa << 13;
    if (exponent > 0 && exponent < 31) bits = (exponent + 112) << 23 | mantissa << 13;
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= MAGNITUDE;
    if (bits > 0x7F800000) return sign | 0x7E00;
    if (bits >= 0x477FF000) return sign | 0x7C00;  // rounds beyond the largest number
    if (bits < 0x38800000) {  // subnormal: beside 0.5, fp32 numbers are 2^-24 apart
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return sign | static_cast<uint16_t>(bits - 0x3F000000);
    }
    return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13);
}
#endif

struct Fp16 {
    using Stored = uint16_t;
    static Floats load(const uint16_t* from, int64_t count) { return wide(read<Halves>(from, count)); }
    static void store(uint16_t* to, Floats x, int64_t count) { write(to, narrow(x), count); }
    static Floats rounded(Floats x) { return wide(narrow(x)); }

   private:
#if defined(__AVX512F__)
    static Floats wide(Halves x) { return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(x))); }
    static Halves narrow(Floats x) {
        return reinterpret_cast<Halves>(
            _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
#elif defined(__F16C__)
    static Floats wide(Halves x) { return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x))); }
    static Halves narrow(Floats x) {
        return reinterpret_cast<Halves>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
    }
#else
    static Floats wide(Halves x) {
        Floats result{};
        for (int64_t i = 0; i < WIDTH; ++i) result[i] = half_to_float(x[i]);
        return result;
    }
    static Halves narrow(Floats x) {
        Halves result{};
        for (int64_t i = 0; i < WIDTH; ++i) result[i] = float_to_half(x[i]);
        return result;
    }
#endif
};

// Calls function(Fp32{}), (Bf16{}) or (Fp16{}), by the number that layout.py gives a dtype.
template <class Function>
inline void with_dtype(int64_t dtype, Function function) {
    if (dtype == 0) function(Fp32{});
    if (dtype == 1) function(Bf16{});
    if (dtype == 2) function(Fp16{});
}

}  // namespace
