// One row of x times rows of four-bit codes, 64 codes at a time, by AVX2.
//
// x is brought into the order in which codes leave their bytes, once: that costs less than to bring all codes into the
// order of x. Values are those of decode_avx2.h; sums stay in registers for a whole row of the weight.
#pragma once

#include "decode_avx2.h"
#include "lines.h"
#include "packed_weight.h"
#include "takers.h"

#if defined(__AVX2__)

namespace {

constexpr int64_t NIBBLE_STEP = 64;

// Whether rows are cut into whole steps, and blocks into parts that a vector's halves are scaled by.
inline bool has_nibble_steps(const OctavoPackedWeight& weight) {
    bool has_blocks = weight.block_in == 16 || weight.block_in == 32 || weight.block_in % NIBBLE_STEP == 0;
    return weight.codes == FOUR_BITS && weight.in_features % NIBBLE_STEP == 0 && has_blocks;
}

// x in the order in which `NibbleDot` meets the codes: see `pair`.
inline Lines in_order_of_nibbles(const float* x, int64_t count) {
    Lines ordered(count);
    float* to = ordered.values();
    for (int64_t begin = 0; begin < count; begin += NIBBLE_STEP)
        for (int high = 0; high < 2; ++high)
            for (int pair = 0; pair < 2; ++pair)
                for (int odd = 0; odd < 2; ++odd)
                    for (int i = 0; i < 8; ++i) {
                        int byte = 16 * (i / 4) + 8 * pair + 2 * (i % 4) + odd;
                        *to++ = x[begin + 2 * byte + high];
                    }
    return ordered;
}

// What the 16 codes stand for: the two upper bytes of an fp32 number, in both halves of registers.
struct WideTable {
    __m256i low, high;

    // `first` and `second`: bits of the values of codes 0 to 7 and 8 to 15.
    static WideTable of(__m256i first, __m256i second) {
        // Four lower, then four higher bytes of each half; of the codes from 8 on in the places after.
        const __m256i front = in_both(2, 6, 10, 14, 3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i back = in_both(-1, -1, -1, -1, -1, -1, -1, -1, 2, 6, 10, 14, 3, 7, 11, 15);
        __m256i bytes = _mm256_or_si256(_mm256_shuffle_epi8(first, front), _mm256_shuffle_epi8(second, back));
        return {_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6)),
                _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(1, 5, 3, 7, 1, 5, 3, 7))};
    }

    // Of bfloat16 numbers.
    static WideTable of(const float* values) { return of(bits(values), bits(values + 8)); }

    // Of what they are times `step`, rounded to bfloat16.
    static WideTable of(const float* values, float step) {
        return of(rounded_bits(values, step), rounded_bits(values + 8, step));
    }

private:
    static __m256i in_both(char a, char b, char c, char d, char e, char f, char g, char h, char i, char j, char k,
                           char l, char m, char n, char o, char p) {
        return _mm256_broadcastsi128_si256(_mm_setr_epi8(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p));
    }

    static __m256i bits(const float* values) { return _mm256_castps_si256(_mm256_loadu_ps(values)); }

    // Ties to even; the lower half is not cleared.
    static __m256i rounded_bits(const float* values, float step) {
        __m256i product = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(values), _mm256_set1_ps(step)));
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(product, 16), _mm256_set1_epi32(1));
        return _mm256_add_epi32(_mm256_add_epi32(product, _mm256_set1_epi32(0x7FFF)), odd);
    }
};

// What each half of a vector is multiplied with: pair 0 has bytes 0 to 7 and 16 to 23 of a step, pair 1 the others.
struct Steps {
    __m256 pairs[2];

    static __m256 halves(float low, float high) { return _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low)); }

    // Those of the step from block `block` on.
    static Steps of(const OctavoPackedWeight& weight, int64_t block) {
        if (weight.block_in == 16)
            return {{halves(step_of(weight, block), step_of(weight, block + 2)),
                     halves(step_of(weight, block + 1), step_of(weight, block + 3))}};
        __m256 both = weight.block_in == 32 ? halves(step_of(weight, block), step_of(weight, block + 1))
                                            : _mm256_set1_ps(step_of(weight, block));
        return {{both, both}};
    }
};

template <OctavoRounding ROUNDING>
class NibbleDot {
public:
    // `x` is `in_order_of_nibbles`.
    NibbleDot(const OctavoPackedWeight& weight, const float* x)
        : weight_(weight), x_(x), grid_(WideTable::of(weight.values)) {}

    // Returns row · x.
    float operator()(int64_t row) const {
        const uint8_t* codes = weight_.payload + row * weight_.row_bytes;
        int64_t first_block = row / weight_.block_out * weight_.scales_per_row;
        if (ROUNDING == TO_BFLOAT16 && weight_.block_in % NIBBLE_STEP == 0) return by_own_tables(codes, first_block);
        return by_grid(codes, first_block);
    }

private:
    // Adds the products of one nibble of each of 32 bytes: two tables' bytes make a value's upper half.
    template <class Finish>
    static void pair(__m256i nibbles, const WideTable& table, const Finish* finish, const float* x, __m256 (&sums)[4]) {
        __m256i low = _mm256_shuffle_epi8(table.low, nibbles), high = _mm256_shuffle_epi8(table.high, nibbles);
        __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
        sums[0] = _mm256_fmadd_ps(finish[0](even(first)), _mm256_load_ps(x), sums[0]);
        sums[1] = _mm256_fmadd_ps(finish[0](odd(first)), _mm256_load_ps(x + 8), sums[1]);
        sums[2] = _mm256_fmadd_ps(finish[1](even(second)), _mm256_load_ps(x + 16), sums[2]);
        sums[3] = _mm256_fmadd_ps(finish[1](odd(second)), _mm256_load_ps(x + 24), sums[3]);
    }

    static __m256 even(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
    static __m256 odd(__m256i words) {
        return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
    }

    template <class Finish>
    static void step(const uint8_t* codes, const WideTable& table, const Finish* finish, const float* x,
                     __m256 (&sums)[4]) {
        const __m256i mask = _mm256_set1_epi8(0xF);
        __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        pair(_mm256_and_si256(bytes, mask), table, finish, x, sums);
        pair(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), table, finish, x + 32, sums);
    }

    // Blocks that are long enough are multiplied with a table of their own rounded values.
    float by_own_tables(const uint8_t* codes, int64_t block) const {
        static constexpr AsIs as_is[2] = {};
        __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t begin = 0; begin < weight_.in_features; begin += weight_.block_in, ++block) {
            WideTable own = WideTable::of(weight_.values, step_of(weight_, block));
            int64_t end = std::min(begin + weight_.block_in, weight_.in_features);
            for (int64_t i = begin; i < end; i += NIBBLE_STEP) step(codes + i / 2, own, as_is, x_ + i, sums);
        }
        return total(sums);
    }

    float by_grid(const uint8_t* codes, int64_t first_block) const {
        __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t i = 0; i < weight_.in_features; i += NIBBLE_STEP) {
            Steps steps = Steps::of(weight_, first_block + i / weight_.block_in);
            const Scaled<ROUNDING> scaled[2] = {{steps.pairs[0]}, {steps.pairs[1]}};
            step(codes + i / 2, grid_, scaled, x_ + i, sums);
        }
        return total(sums);
    }

    const OctavoPackedWeight& weight_;
    const float* x_;
    WideTable grid_;
};

}  // namespace
#endif
