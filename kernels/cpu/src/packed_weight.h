// A packed weight [out, in], and its rows as fp32: code value · step, rounded to the dtype of the weight's values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

extern "C" {

// The kinds of codes that have instructions of their own; all others are looked up one by one.
enum OctavoCodes : int32_t { OTHER_CODES, FOUR_BITS, SIGNED_BYTES, UNSIGNED_BYTES, E4M3_BYTES, E5M2_BYTES };
enum OctavoRounding : int32_t { TO_FLOAT32, TO_BFLOAT16, TO_FLOAT16 };

constexpr int NUM_CODES = 6;

// `kernels/cpu/packed_weight.py` declares the same.
struct OctavoPackedWeight {
    const uint8_t* payload;        // [out, row_bytes], each row one little-endian stream of codes
    const float* values;           // [2^bits]: what each code stands for
    const void* scales;            // fp32, or bytes that index scale_values: [⌈out/block_out⌉, ⌈in/block_in⌉]
    const float* scale_values;     // [256], or null for fp32 scales
    const float* global_scale;     // [1], or null
    int64_t out_features, in_features, row_bytes, block_out, block_in, scales_per_row;
    int32_t bits, codes, rounding, unused;  // of OctavoCodes and OctavoRounding
};
}

namespace {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Rounds to bfloat16, ties to even. NaN must have a payload that survives the carry, as `step_of` makes sure.
inline float round_to_bfloat16(float value) {
    uint32_t bits = float_to_bits(value);
    return bits_to_float((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000);
}

// Rounds to float16, ties to even: to a multiple of the spacing there, or infinite.
inline float round_to_float16(float value) {
    uint32_t sign = float_to_bits(value) & 0x80000000, magnitude = float_to_bits(value) & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return value;
    if (magnitude >= float_to_bits(65520.0f)) return bits_to_float(sign | 0x7F800000);
    float power = bits_to_float(magnitude & 0x7F800000);
    float shift = 1.5f * 8192.0f * (power < 0x1p-14f ? 0x1p-14f : power);
    float rounded = bits_to_float(magnitude) + shift - shift;
    return bits_to_float(float_to_bits(rounded) | sign);
}

template <OctavoRounding ROUNDING>
inline float rounded(float value) {
    if (ROUNDING == TO_BFLOAT16) return round_to_bfloat16(value);
    return ROUNDING == TO_FLOAT16 ? round_to_float16(value) : value;
}

// The step between the codes of block `block`; NaN has the payload that rounding takes.
inline float step_of(const OctavoPackedWeight& weight, int64_t block) {
    float step = weight.scale_values == nullptr ? static_cast<const float*>(weight.scales)[block]
                                                : weight.scale_values[static_cast<const uint8_t*>(weight.scales)[block]];
    if (weight.global_scale != nullptr) step *= *weight.global_scale;
    return std::isnan(step) ? NAN : step;
}

inline int code_at(const OctavoPackedWeight& weight, const uint8_t* row, int64_t column) {
    int64_t bit = column * weight.bits, byte = bit / 8;
    int word = row[byte];
    if (bit % 8 + weight.bits > 8) word |= row[byte + 1] << 8;
    return (word >> bit % 8) & ((1 << weight.bits) - 1);
}

// Decodes codes of one step from `column` on, for places from `at` on.
template <OctavoRounding ROUNDING, class Take>
inline void decode_one_by_one(const OctavoPackedWeight& weight, const uint8_t* row, int64_t column, int64_t count,
                              float step, Take& take, int64_t at) {
    for (int64_t i = 0; i < count; ++i)
        take.one(at + i, rounded<ROUNDING>(weight.values[code_at(weight, row, column + i)] * step));
}

}  // namespace
