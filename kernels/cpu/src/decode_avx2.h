// Codes of the common widths to fp32 values, by AVX2; the AVX-512 library uses these as well: memory is the limit.
#pragma once

#include "packed_weight.h"
#include "takers.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace {

template <OctavoRounding ROUNDING>
inline __m256 rounded(__m256 value) {
    if (ROUNDING == TO_BFLOAT16) {
        __m256i bits = _mm256_castps_si256(value);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
    }
    if (ROUNDING == TO_FLOAT16) return _mm256_cvtph_ps(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    return value;
}

// What the 16 codes of four bits stand for, as the two upper bytes of an fp32 number: a code's lies at its place.
struct NibbleTable {
    __m128i low, high;

    // `values` must be bfloat16 numbers.
    static NibbleTable of(__m256 first, __m256 second) {
        // The upper halves, as 16 numbers of 16 bits in the order of the codes.
        __m256i words = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(first), 16),
                                            _mm256_srli_epi32(_mm256_castps_si256(second), 16));
        words = _mm256_permute4x64_epi64(words, 0xD8);
        __m128i even = _mm256_castsi256_si128(words), odd = _mm256_extracti128_si256(words, 1);
        __m128i byte = _mm_set1_epi16(0xFF);
        return {_mm_packus_epi16(_mm_and_si128(even, byte), _mm_and_si128(odd, byte)),
                _mm_packus_epi16(_mm_srli_epi16(even, 8), _mm_srli_epi16(odd, 8))};
    }

    template <OctavoRounding ROUNDING>
    static NibbleTable of(const float* values, float step) {
        __m256 factor = _mm256_set1_ps(step);
        return of(rounded<ROUNDING>(_mm256_mul_ps(_mm256_loadu_ps(values), factor)),
                  rounded<ROUNDING>(_mm256_mul_ps(_mm256_loadu_ps(values + 8), factor)));
    }
};

struct AsIs {
    __m256 operator()(__m256 value) const { return value; }
};

// Rounds grid values times a step.
template <OctavoRounding ROUNDING>
struct Scaled {
    __m256 step;
    __m256 operator()(__m256 value) const { return rounded<ROUNDING>(_mm256_mul_ps(value, step)); }
};

// Reads 16 bytes, gives 32 values, each half finished in a way of its own, to `take`.
template <class Finish, class Take>
inline void decode_32_nibbles(const uint8_t* codes, const NibbleTable& table, Finish one, Finish other, Take& take,
                             int64_t at) {
    // In this order of bytes, interleaving within the halves of a register ends in the order of the codes.
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)), order);
    __m256i words = _mm256_cvtepu8_epi16(bytes);
    __m256i nibbles = _mm256_and_si256(_mm256_or_si256(words, _mm256_slli_epi16(words, 4)), _mm256_set1_epi8(0xF));
    __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table.low), nibbles);
    __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table.high), nibbles);
    __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    __m256i zero = _mm256_setzero_si256();
    take.template vector<0>(at, one(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first))));
    take.template vector<1>(at + 8, one(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first))));
    take.template vector<2>(at + 16, other(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, second))));
    take.template vector<3>(at + 24, other(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, second))));
}

// Reads 8 bytes, gives 16 values.
template <class Finish, class Take>
inline void decode_16_nibbles(const uint8_t* codes, const NibbleTable& table, Finish finish, Take& take, int64_t at) {
    __m128i words = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    __m128i nibbles = _mm_and_si128(_mm_or_si128(words, _mm_slli_epi16(words, 4)), _mm_set1_epi8(0xF));
    __m128i low = _mm_shuffle_epi8(table.low, nibbles), high = _mm_shuffle_epi8(table.high, nibbles);
    __m256i first = _mm256_cvtepu16_epi32(_mm_unpacklo_epi8(low, high));
    __m256i second = _mm256_cvtepu16_epi32(_mm_unpackhi_epi8(low, high));
    take.template vector<0>(at, finish(_mm256_castsi256_ps(_mm256_slli_epi32(first, 16))));
    take.template vector<1>(at + 8, finish(_mm256_castsi256_ps(_mm256_slli_epi32(second, 16))));
}

// The next ones decode groups of codes of one step, for places from `at` on, and return how many they did.
template <class Finish, class Take>
inline int64_t decode_nibbles(const uint8_t* codes, const NibbleTable& table, Finish finish, int64_t count, Take& take,
                              int64_t at) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) decode_32_nibbles(codes + i / 2, table, finish, finish, take, at + i);
    for (; i + 16 <= count; i += 16) decode_16_nibbles(codes + i / 2, table, finish, take, at + i);
    return i;
}

inline __m128i eight_bytes(const uint8_t* codes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)); }

template <class ToGrid, class Finish, class Take>
inline int64_t decode_bytes(const uint8_t* codes, ToGrid to_grid, Finish finish, int64_t count, Take& take, int64_t at) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        take.template vector<0>(at + i, finish(to_grid(eight_bytes(codes + i))));
        take.template vector<1>(at + i + 8, finish(to_grid(eight_bytes(codes + i + 8))));
        take.template vector<2>(at + i + 16, finish(to_grid(eight_bytes(codes + i + 16))));
        take.template vector<3>(at + i + 24, finish(to_grid(eight_bytes(codes + i + 24))));
    }
    for (; i + 8 <= count; i += 8) take.template vector<0>(at + i, finish(to_grid(eight_bytes(codes + i))));
    return i;
}

inline __m256 signed_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline __m256 unsigned_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline __m256 e5m2_bytes(__m128i bytes) { return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8)); }

// As float16 with another bias: eight binades too low, subnormals included.
inline __m256 e4m3_bytes(__m128i bytes) {
    __m128i words = _mm_cvtepu8_epi16(bytes);
    __m128i magnitude = _mm_and_si128(words, _mm_set1_epi16(0x7F));
    __m128i is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F));
    __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), _mm_slli_epi16(_mm_xor_si128(words, magnitude), 8));
    half = _mm_or_si128(half, _mm_and_si128(is_nan, _mm_set1_epi16(0x7E00)));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

// Blocks from this length on are decoded by a table of their own rounded values.
constexpr int64_t OWN_TABLE = 64;

// Decodes as many codes of one step, from a byte's start on, as its instructions take; returns how many. `grid` is the
// table of four-bit codes without a step.
template <OctavoCodes CODES, OctavoRounding ROUNDING, class Take>
inline int64_t decode_vectors(const OctavoPackedWeight& weight, const NibbleTable& grid, const uint8_t* codes,
                              int64_t count, float step, Take& take, int64_t at) {
    Scaled<ROUNDING> scaled{_mm256_set1_ps(step)};
    switch (CODES) {
        case FOUR_BITS:
            if (ROUNDING == TO_BFLOAT16 && count >= OWN_TABLE) {
                NibbleTable own = NibbleTable::of<ROUNDING>(weight.values, step);
                return decode_nibbles(codes, own, AsIs{}, count, take, at);
            }
            return decode_nibbles(codes, grid, scaled, count, take, at);
        case SIGNED_BYTES: return decode_bytes(codes, signed_bytes, scaled, count, take, at);
        case UNSIGNED_BYTES: return decode_bytes(codes, unsigned_bytes, scaled, count, take, at);
        case E4M3_BYTES: return decode_bytes(codes, e4m3_bytes, scaled, count, take, at);
        case E5M2_BYTES: return decode_bytes(codes, e5m2_bytes, scaled, count, take, at);
        default: return 0;
    }
}

// Decodes blocks of 16 or 32 four-bit codes, 32 codes at a time, from a byte's start on; returns how many those were.
template <OctavoRounding ROUNDING, class Take>
inline int64_t decode_short_blocks(const OctavoPackedWeight& weight, const NibbleTable& grid, const uint8_t* codes,
                                   int64_t first_block, int64_t count, Take& take) {
    int64_t per_32 = 32 / weight.block_in, block = first_block;
    for (int64_t i = 0; i + 32 <= count; i += 32, block += per_32) {
        Scaled<ROUNDING> one{_mm256_set1_ps(step_of(weight, block))};
        Scaled<ROUNDING> other{_mm256_set1_ps(step_of(weight, block + per_32 - 1))};
        decode_32_nibbles(codes + i / 2, grid, one, other, take, i);
    }
    return count / 32 * 32;
}

}  // namespace
#endif
