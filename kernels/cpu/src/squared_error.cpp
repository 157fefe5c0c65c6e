// The operator `squared_error`: sums of squares of values and of what their codes have changed, run by run.
// Squares are exact, and sums are made in the order of core/formats/squared_error.py: halves are added to each other.
#include <algorithm>

#include "decoder.h"
#include "isa.h"
#include "parallel.h"
#include "vector.h"

namespace {

#pragma GCC diagnostic ignored "-Wpsabi"  // Doubles never leave this file
typedef double Doubles __attribute__((vector_size(8 * WIDTH)));

constexpr int64_t RUN = 512, QUARTER = RUN / 4;

inline Doubles squared(Floats x) {
    Doubles wide = __builtin_convertvector(x, Doubles);
    return wide * wide;
}

inline double folded(Doubles (&sums)[QUARTER / WIDTH]) {
    for (int64_t half = QUARTER / WIDTH / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    for (int64_t half = WIDTH / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) sums[0][lane] += sums[0][lane + half];
    return sums[0][0];
}

// Sums RUN values and their errors. Each first sum is of the same place in all quarters, halves first.
template <class Dtype>
inline void sum_run(const typename Dtype::Stored* x, const float* stored, double* signal, double* noise) {
    Doubles signals[QUARTER / WIDTH], noises[QUARTER / WIDTH];
    for (int64_t i = 0; i < QUARTER; i += WIDTH) {
        Doubles exact[4], error[4];
        for (int64_t quarter = 0; quarter < 4; ++quarter) {
            Floats values = Dtype::load(x + quarter * QUARTER + i, WIDTH);
            exact[quarter] = squared(values);
            error[quarter] = squared(Fp32::load(stored + quarter * QUARTER + i, WIDTH) - values);
        }
        signals[i / WIDTH] = (exact[0] + exact[2]) + (exact[1] + exact[3]);
        noises[i / WIDTH] = (error[0] + error[2]) + (error[1] + error[3]);
    }
    *signal = folded(signals);
    *noise = folded(noises);
}

// Sums the runs of one row; the last one is filled with zeros.
template <class Dtype>
void sum_row(const OctavoPackedWeight& weight, const Decoder<Store>& decoder, int64_t row,
             const typename Dtype::Stored* x, double* signals, double* noises) {
    alignas(64) float decoded[RUN];
    for (int64_t begin = 0; begin < weight.in_features; begin += RUN) {
        int64_t count = std::min(RUN, weight.in_features - begin);
        Store store{decoded};
        decoder.decode(row, begin, count, store);
        if (count == RUN) {
            sum_run<Dtype>(x + begin, decoded, signals++, noises++);
            continue;
        }
        typename Dtype::Stored rest[RUN] = {};
        std::copy(x + begin, x + begin + count, rest);
        std::fill(decoded + count, decoded + RUN, 0.0f);
        sum_run<Dtype>(rest, decoded, signals++, noises++);
    }
}

}  // namespace

// sums: [2, out, ⌈in / RUN⌉] of the values x [out, in] and of their errors.
OCTAVO_EXPORT(octavo_squared_error)
(const OctavoPackedWeight* weight, int64_t dtype, const void* x, double* sums, int64_t num_threads) {
    int64_t columns = weight->in_features, runs = (columns + RUN - 1) / RUN;
    with_dtype(dtype, [&](auto type) {
        using Dtype = decltype(type);
        parallel(weight->out_features, num_threads, [&](int64_t begin, int64_t end) {
            Decoder<Store> decoder(*weight);
            for (int64_t row = begin; row < end; ++row)
                sum_row<Dtype>(*weight, decoder, row, static_cast<const typename Dtype::Stored*>(x) + row * columns,
                               sums + row * runs, sums + (weight->out_features + row) * runs);
        });
    });
}
