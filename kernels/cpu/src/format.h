// Number formats: rounding to the values of an element type, and from largest magnitudes to scales.
// The arithmetic is that of core/formats/{rounding,scales}.py, operation by operation.
#pragma once

#include "vector.h"

namespace {

// WITHOUT_ZERO: there is no −0, except for what rounds to it from below.
enum Rounding : int32_t { INTEGER, TIES_TO_EVEN, TIES_TO_EVEN_WITHOUT_ZERO, TIES_TOWARD_ZERO };
enum Arithmetic : int32_t { MULTIPLY, DIVIDE, DIVIDE_NATIVE };
enum ScaleType : int32_t { FLOAT32, E4M3, E8M0 };

// Mirrors `CFormat` of format.py, which says what the fields are.
struct Format {
    float min, max, smallest_normal, large, spacing, still_down;
    int32_t rounding, arithmetic, scale, is_float, bits, mantissa_bits, bias, nan_code, largest_exponent;
};

// What takes values to codes and back: factors of one block, or of WIDTH blocks.
struct Factors {
    Floats step, inverse, covered;
};

constexpr float SMALLEST_AMAX = 0x1p-110f;
constexpr float TO_INTEGER = 0x1.8p23f;  // beside it, fp32 numbers are one apart
constexpr int32_t EXPONENT = 0x7F800000;

inline Floats power_below(Floats x, float smallest) {
    Floats power = floats_of(bits_of(x) & EXPONENT);
    return power < smallest ? all(smallest) : power;
}

inline Floats round_to_even(Floats x, float smallest_normal, float large) {
    Floats power = power_below(x, smallest_normal);
    Floats rounded = plus_exact_product(plus_exact_product(x, power, large), power, -large);
    return floats_of(bits_of(rounded) | (bits_of(x) & SIGN));  // a zero has no sign yet
}

template <Rounding rounding>
inline Floats round_to_grid(Floats x, const Format& f) {
    x = clamped(x, f.min, f.max);
    if (rounding == INTEGER) return (x + TO_INTEGER) - TO_INTEGER;
    if (rounding == TIES_TO_EVEN_WITHOUT_ZERO) x = x + 0.0f;
    if (rounding != TIES_TOWARD_ZERO) return round_to_even(x, f.smallest_normal, f.large);
    Floats quantum = power_below(x, f.smallest_normal) * f.spacing;
    Floats below = magnitude(x) / quantum - 0.5f;
    Floats whole = (below + TO_INTEGER) - TO_INTEGER;
    whole = whole < below ? whole + 1.0f : whole;
    return with_sign_of(whole * quantum, x == 0.0f ? all(-0.0f) : x);
}

template <Arithmetic arithmetic, class Dtype>
inline Floats in_steps(Floats x, const Factors& factors) {
    if (arithmetic == MULTIPLY) return x * factors.inverse;
    if (arithmetic == DIVIDE) return x / factors.step;
    return Dtype::rounded(x / factors.step);
}

// Codes of floating-point numbers that are values of the format.
inline Ints float_code(Floats grid, int32_t mantissa_bits, int32_t bias) {
    Floats positive = magnitude(grid);
    int32_t offset = (127 - bias) << mantissa_bits;
    Ints normal = (bits_of(positive) >> (23 - mantissa_bits)) - offset;
    float steps = floats_of(Ints{} + ((127 + bias - 1 + mantissa_bits) << 23))[0];
    Ints subnormal = __builtin_convertvector(positive * steps, Ints);
    return normal < (1 << mantissa_bits) ? subnormal : normal;
}

// The same with a sign, and NaN, which has the code 0 where the format has none.
inline Ints signed_code(Ints found, Floats x, const Format& f) {
    Ints sign = (bits_of(x) < 0) & (1 << (f.bits - 1));
    Ints nan_code = (f.nan_code | sign) & (f.nan_code != 0 ? -1 : 0);
    return is_nan(x) ? nan_code : found | sign;
}

// Codes of the nearest numbers of the format, ties to even: in the bits of fp32 numbers, of which the upper ones are left,
// or for subnormal numbers beside one so large that fp32 rounds to the format's spacing.
inline Ints nearest_code(Floats x, const Format& f) {
    Floats positive = magnitude(x);
    positive = positive > f.max ? all(f.max) : positive;
    int32_t dropped = 23 - f.mantissa_bits;
    Ints bits = bits_of(positive), is_odd = (bits >> dropped) & 1;
    int32_t just_below_half = (1 << (dropped - 1)) - 1, rebiased = (127 - f.bias) << 23;
    Ints normal = (bits + is_odd + (just_below_half - rebiased)) >> dropped;
    Ints large = Ints{} + ((127 - f.bias + 1 + dropped) << 23);
    Ints subnormal = bits_of(positive + floats_of(large)) - large;
    return signed_code(positive < f.smallest_normal ? subnormal : normal, x, f);
}

// Codes of numbers in steps.
template <Rounding rounding>
inline Ints code_of(Floats x, const Format& f) {
    if (rounding == TIES_TO_EVEN) return nearest_code(x, f);
    if (rounding == TIES_TO_EVEN_WITHOUT_ZERO) return nearest_code(x + 0.0f, f);
    Floats grid = round_to_grid<rounding>(x, f);
    Floats number = is_nan(grid) ? Floats{} : grid;
    if (rounding == INTEGER) return __builtin_convertvector(number, Ints) & ((1 << f.bits) - 1);
    return signed_code(float_code(number, f.mantissa_bits, f.bias), grid, f);
}

// Scales of WIDTH blocks: the factors, and what is stored of each, as the bits of a float or a byte.
struct Scales {
    Factors factors;
    Ints stored;
};

inline Scales float_scales(Floats amax, const Format& f) {
    Ints is_zero = magnitude(amax) < SMALLEST_AMAX;
    Floats inverse{}, step;
    if (f.arithmetic == MULTIPLY) {
        inverse = f.is_float ? (1.0f / amax) * f.max : f.max / amax;
        inverse = is_zero ? all(1.0f) : inverse;
        step = 1.0f / inverse;
    } else {
        step = is_zero ? all(1.0f) : amax / f.max;
    }
    return {{step, inverse, Floats{}}, bits_of(step)};
}

inline Scales e4m3_scales(Floats amax, const Format& f, float global_scale, float global_amax) {
    Floats ratio = amax / (f.max * global_scale);
    ratio = clamped(amax == 0.0f ? all(1.0f) : ratio, 0x1p-9f, 448.0f);
    Floats rounded = round_to_even(ratio, 0x1p-6f, 0x1.8p20f);
    Ints nan = is_nan(rounded);
    Ints stored = nan ? Ints{} + 0x7F : float_code(nan ? Floats{} : rounded, 3, 7);
    Floats covered = global_amax < amax ? all(global_amax) : amax;
    covered = global_amax != global_amax ? all(global_amax) : covered;
    return {{rounded * global_scale, Floats{}, covered}, stored};
}

inline Scales e8m0_scales(Floats amax, const Format& f) {
    Floats positive = magnitude(amax);
    Ints is_subnormal = positive < 0x1p-126f;
    Ints bits = bits_of(is_subnormal ? positive * 0x1p32f : positive);
    Ints exponent = (bits >> 23) - 126 - (is_subnormal & 32);
    Floats mantissa = floats_of((bits & 0x7FFFFF) | 0x3F000000);
    Ints up = (mantissa > f.still_down) & (amax > 0.0f) & 1;
    Ints biased = exponent - f.largest_exponent + up + 127;
    biased = amax == 0.0f ? Ints{} : biased;
    biased = biased < 0 ? Ints{} : biased;
    biased = biased > 254 ? Ints{} + 254 : biased;
    Ints step = biased == 0 ? Ints{} + 0x00400000 : biased << 23;
    Ints is_finite = positive <= 0x1.fffffep127f;
    step = is_finite ? step : Ints{} + 0x7FC00000;
    return {{floats_of(step), 1.0f / floats_of(step), Floats{}}, is_finite ? biased : Ints{} + 255};
}

inline Scales scales_of(Floats amax, const Format& f, float global_scale, float global_amax) {
    if (f.scale == E4M3) return e4m3_scales(amax, f, global_scale, global_amax);
    if (f.scale == E8M0) return e8m0_scales(amax, f);
    return float_scales(amax, f);
}


// Constants of a format, so that code is compiled for each.
template <int32_t value>
struct Constant {
    static constexpr int32_t VALUE = value;
};

template <class Function>
inline void with_arithmetic(int32_t arithmetic, Function function) {
    if (arithmetic == MULTIPLY) function(Constant<MULTIPLY>{});
    if (arithmetic == DIVIDE) function(Constant<DIVIDE>{});
    if (arithmetic == DIVIDE_NATIVE) function(Constant<DIVIDE_NATIVE>{});
}

template <class Function>
inline void with_rounding(int32_t rounding, Function function) {
    if (rounding == INTEGER) function(Constant<INTEGER>{});
    if (rounding == TIES_TO_EVEN) function(Constant<TIES_TO_EVEN>{});
    if (rounding == TIES_TO_EVEN_WITHOUT_ZERO) function(Constant<TIES_TO_EVEN_WITHOUT_ZERO>{});
    if (rounding == TIES_TOWARD_ZERO) function(Constant<TIES_TOWARD_ZERO>{});
}

}  // namespace
