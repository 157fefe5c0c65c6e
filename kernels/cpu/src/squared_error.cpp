// The operator `squared_error`: sums of squares of values and of what their codes have changed, run by run.
// Squares are exact, and sums are made in the order of core/formats/squared_error.py: halves are added to each other.
#include <algorithm>

#include "decoder.h"
#include "isa.h"
#include "parallel.h"
#include "vector.h"

namespace {

#pragma GCC diagnostic ignored "-Wpsabi"  // these vectors never leave this file
constexpr int64_t HALF = WIDTH / 2;  // doubles of a register
typedef float HalfFloats __attribute__((vector_size(4 * HALF)));
typedef double Doubles __attribute__((vector_size(8 * HALF)));

constexpr int64_t RUN = 512, QUARTER = RUN / 4;

// Of the general conversion, compilers make more than is needed.
inline Doubles widened(HalfFloats x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Doubles>(_mm512_cvtps_pd(reinterpret_cast<__m256>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(reinterpret_cast<__m128>(x)));
#else
    return __builtin_convertvector(x, Doubles);
#endif
}

// Exact squares of WIDTH numbers.
struct Squares {
    Doubles low, high;

    static Squares of(Floats x) {
        HalfFloats halves[2];
        memcpy(halves, &x, sizeof x);
        Doubles low = widened(halves[0]), high = widened(halves[1]);
        return {low * low, high * high};
    }
};

inline Squares operator+(Squares a, Squares b) { return {a.low + b.low, a.high + b.high}; }

// Adds the second half of the numbers to the first until one is left.
inline double folded(double (&sums)[QUARTER]) {
    for (int64_t half = QUARTER / 2; half >= HALF; half /= 2)
        for (int64_t i = 0; i < half; i += HALF)
            write(sums + i, read<Doubles>(sums + i, WIDTH) + read<Doubles>(sums + half + i, WIDTH), WIDTH);
    for (int64_t half = HALF / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// Sums RUN values and their errors. The first sums are of the same place in all quarters, as two foldings make them.
template <class Dtype>
inline void sum_run(const typename Dtype::Stored* x, const float* stored, double* signal, double* noise) {
    alignas(64) double signals[QUARTER], noises[QUARTER];
    for (int64_t i = 0; i < QUARTER; i += WIDTH) {
        auto values = [=](int64_t quarter) { return Dtype::load(x + quarter * QUARTER + i, WIDTH); };
        auto errors = [=](int64_t quarter) { return Fp32::load(stored + quarter * QUARTER + i, WIDTH) - values(quarter); };
        Squares exact = (Squares::of(values(0)) + Squares::of(values(2))) + (Squares::of(values(1)) + Squares::of(values(3)));
        Squares error = (Squares::of(errors(0)) + Squares::of(errors(2))) + (Squares::of(errors(1)) + Squares::of(errors(3)));
        memcpy(signals + i, &exact, sizeof exact);
        memcpy(noises + i, &error, sizeof error);
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
