// Rows of a packed weight as fp32, by the instructions there are.
#pragma once

#include <algorithm>

#include "decode_avx2.h"
#include "packed_weight.h"

namespace {

// Gives the values of rows to a `Take` (takers.h).
template <class Take>
class Decoder {
public:
    explicit Decoder(const OctavoPackedWeight& weight) : weight_(weight) {
        decode_ = pick(weight.codes, weight.rounding);
#if defined(__AVX2__)
        if (weight.codes == FOUR_BITS) grid_ = NibbleTable::of<TO_FLOAT32>(weight.values, 1.0f);
#endif
    }

    // Decodes columns [begin, begin + count) of a row; the first has place 0.
    void decode(int64_t row, int64_t begin, int64_t count, Take& take) const { (this->*decode_)(row, begin, count, take); }

private:
    using Decode = void (Decoder::*)(int64_t, int64_t, int64_t, Take&) const;

    bool has_short_blocks() const { return weight_.block_in == 16 || weight_.block_in == 32; }

    template <OctavoCodes CODES, OctavoRounding ROUNDING>
    void decode_blocks(int64_t row, int64_t begin, int64_t count, Take& take) const {
        const uint8_t* codes = weight_.payload + row * weight_.row_bytes;
        int64_t first_block = row / weight_.block_out * weight_.scales_per_row;
        int64_t column = begin, end = begin + count;
#if defined(__AVX2__)
        if (CODES == FOUR_BITS && has_short_blocks() && begin % 32 == 0)
            column += decode_short_blocks<ROUNDING>(weight_, grid_, codes + begin / 2,
                                                    first_block + begin / weight_.block_in, count, take);
#endif
        int64_t block = column / weight_.block_in, block_end = (block + 1) * weight_.block_in;
        for (; column < end; ++block, block_end += weight_.block_in) {
            int64_t run = std::min(block_end, end) - column, done = 0;
            float step = step_of(weight_, first_block + block);
            int64_t at = column - begin;
#if defined(__AVX2__)
            int64_t bit = column * weight_.bits;
            if (bit % 8 == 0)
                done = decode_vectors<CODES, ROUNDING>(weight_, grid_, codes + bit / 8, run, step, take, at);
#endif
            if (done < run)
                decode_one_by_one<ROUNDING>(weight_, codes, column + done, run - done, step, take, at + done);
            column += run;
        }
    }

    template <OctavoRounding ROUNDING>
    static Decode pick(int32_t codes) {
        static constexpr Decode all[NUM_CODES] = {
            &Decoder::decode_blocks<OTHER_CODES, ROUNDING>,    &Decoder::decode_blocks<FOUR_BITS, ROUNDING>,
            &Decoder::decode_blocks<SIGNED_BYTES, ROUNDING>,   &Decoder::decode_blocks<UNSIGNED_BYTES, ROUNDING>,
            &Decoder::decode_blocks<E4M3_BYTES, ROUNDING>,     &Decoder::decode_blocks<E5M2_BYTES, ROUNDING>,
        };
        return all[codes];
    }

    static Decode pick(int32_t codes, int32_t rounding) {
        if (rounding == TO_BFLOAT16) return pick<TO_BFLOAT16>(codes);
        return rounding == TO_FLOAT16 ? pick<TO_FLOAT16>(codes) : pick<TO_FLOAT32>(codes);
    }

    const OctavoPackedWeight& weight_;
    Decode decode_;
#if defined(__AVX2__)
    NibbleTable grid_{};
#endif
};

}  // namespace
