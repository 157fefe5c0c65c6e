// x · weightᵀ of a packed weight: a few of its rows at a time are decoded into the cache and multiplied with all of x.
#include <algorithm>
#include <optional>
#include <type_traits>

#include "decoder.h"
#include "isa.h"
#include "lines.h"
#include "nibble_dot.h"
#include "parallel.h"
#include "vector.h"

namespace {

constexpr int64_t LANES = 8;              // values of a vector
constexpr int64_t GROUP = 4, CHUNK = 512;  // weight rows and columns that are decoded at a time

#pragma GCC diagnostic ignored "-Wpsabi"  // Lanes never leave this file
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

inline Lanes load(const float* values) {
    Lanes lanes;
    std::memcpy(&lanes, values, sizeof lanes);
    return lanes;
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
#if defined(__FMA__)
    return reinterpret_cast<Lanes>(
        _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(sum)));
#else
    return a * b + sum;
#endif
}

// Decodes columns [begin, begin + count) of a row; `result` is filled with zeros to a multiple of LANES.
void decode(const Decoder<Store>& decoder, int64_t row, int64_t begin, int64_t count, float* result) {
    Store store{result};
    decoder.decode(row, begin, count, store);
    std::fill(result + count, result + (count + LANES - 1) / LANES * LANES, 0.0f);
}

// sums[r][g] += x[r] · weight[g] for `ROWS` rows of x and GROUP decoded rows, lane by lane.
template <int ROWS>
inline void multiply(const float* weight, const float* x, int64_t x_stride, int64_t count, Lanes (*sums)[GROUP]) {
    Lanes local[ROWS][GROUP];
    std::memcpy(local, sums, sizeof local);
    for (int64_t i = 0; i < count; i += LANES) {
        Lanes column[GROUP];
        for (int g = 0; g < GROUP; ++g) column[g] = load(weight + g * CHUNK + i);
        for (int r = 0; r < ROWS; ++r) {
            Lanes values = load(x + r * x_stride + i);
            for (int g = 0; g < GROUP; ++g) local[r][g] = multiply_add(values, column[g], local[r][g]);
        }
    }
    std::memcpy(sums, local, sizeof local);
}

inline float total(Lanes lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Rows of x as fp32, each filled with zeros to a multiple of LANES; x itself where it is that already.
template <class Dtype>
class WideRows {
public:
    WideRows(const void* x, int64_t rows, int64_t columns) : stride_((columns + LANES - 1) / LANES * LANES) {
        auto from = static_cast<const typename Dtype::Stored*>(x);
        if (std::is_same<Dtype, Fp32>::value && stride_ == columns) {
            values_ = static_cast<const float*>(x);
            return;
        }
        copy_.emplace(rows * stride_);
        float* to = copy_->values();
        for (int64_t row = 0; row < rows; ++row, from += columns, to += stride_)
            for (int64_t i = 0; i < columns; i += WIDTH) {
                int64_t count = std::min(WIDTH, columns - i);
                write(to + i, Dtype::load(from + i, count), count);
            }
        values_ = copy_->values();
    }

    int64_t stride() const { return stride_; }
    const float* from(int64_t row, int64_t column) const { return values_ + row * stride_ + column; }

private:
    int64_t stride_;
    std::optional<Lines> copy_;
    const float* values_;
};

// Where sums go to: the bias is added, and they are rounded once.
template <class Dtype>
struct Results {
    using Stored = typename Dtype::Stored;
    const Stored* bias;
    Stored* results;
    int64_t stride;

    void put(int64_t row, int64_t column, float sum) const {
        if (bias != nullptr) sum += Dtype::load(bias + column, 1)[0];
        Dtype::store(results + row * stride + column, quiet(all(sum)), 1);
    }
};

template <class Dtype>
struct Product {
    const OctavoPackedWeight& weight;
    const WideRows<Dtype>& x;
    int64_t rows;
    Results<Dtype> results;

    // Computes GROUP columns of the result, or as many as there are, from `first` on. Rows of `decoded` without a
    // weight row hold zeros or an earlier one; their sums are not used.
    void columns(const Decoder<Store>& decoder, int64_t first, float* decoded, Lanes (*sums)[GROUP]) const {
        int64_t used = std::min(GROUP, weight.out_features - first);
        std::memset(sums, 0, rows * sizeof *sums);
        for (int64_t begin = 0; begin < weight.in_features; begin += CHUNK) {
            int64_t count = std::min(CHUNK, weight.in_features - begin);
            for (int64_t g = 0; g < used; ++g) decode(decoder, first + g, begin, count, decoded + g * CHUNK);
            int64_t row = 0;
            for (; row + 2 <= rows; row += 2) multiply<2>(decoded, x.from(row, begin), x.stride(), count, sums + row);
            if (row < rows) multiply<1>(decoded, x.from(row, begin), x.stride(), count, sums + row);
        }
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t g = 0; g < used; ++g) results.put(row, first + g, total(sums[row][g]));
    }
};

constexpr int64_t MOST_ROWS = 64;

template <class Dtype>
void all_rows(const Product<Dtype>& product, int64_t num_threads) {
    const OctavoPackedWeight& weight = product.weight;
    parallel((weight.out_features + GROUP - 1) / GROUP, num_threads, [&](int64_t begin, int64_t end) {
        Decoder<Store> decoder(weight);
        alignas(64) float decoded[GROUP * CHUNK] = {};
        Lanes sums[MOST_ROWS][GROUP];
        for (int64_t group = begin; group < end; ++group) product.columns(decoder, group * GROUP, decoded, sums);
    });
}

#if defined(__AVX2__)
// The product with one row of x: decoded values are multiplied in registers.
template <class Dtype>
void one_row(const Product<Dtype>& product, int64_t num_threads) {
    parallel(product.weight.out_features, num_threads, [&](int64_t begin, int64_t end) {
        Decoder<Dot> decoder(product.weight);
        for (int64_t column = begin; column < end; ++column) {
            Dot dot{product.x.from(0, 0)};
            decoder.decode(column, 0, product.weight.in_features, dot);
            product.results.put(0, column, dot.result());
        }
    });
}

// The same where codes of four bits are taken 64 at a time.
template <OctavoRounding ROUNDING, class Dtype>
void one_row_of_nibbles(const Product<Dtype>& product, int64_t num_threads) {
    const Lines x = in_order_of_nibbles(product.x.from(0, 0), product.weight.in_features);
    parallel(product.weight.out_features, num_threads, [&](int64_t begin, int64_t end) {
        NibbleDot<ROUNDING> dot(product.weight, x.values());
        for (int64_t column = begin; column < end; ++column) product.results.put(0, column, dot(column));
    });
}

template <class Dtype>
void one_row_of_nibbles(const Product<Dtype>& product, int64_t num_threads) {
    switch (product.weight.rounding) {
        case TO_BFLOAT16: return one_row_of_nibbles<TO_BFLOAT16>(product, num_threads);
        case TO_FLOAT16: return one_row_of_nibbles<TO_FLOAT16>(product, num_threads);
        default: return one_row_of_nibbles<TO_FLOAT32>(product, num_threads);
    }
}
#endif

template <class Dtype>
void multiply_by(const Product<Dtype>& product, int64_t num_threads) {
#if defined(__AVX2__)
    if (product.rows == 1 && has_nibble_steps(product.weight)) return one_row_of_nibbles(product, num_threads);
    if (product.rows == 1 && product.weight.codes != OTHER_CODES) return one_row(product, num_threads);
#endif
    all_rows(product, num_threads);
}

}  // namespace

// result [rows, out] = x [rows, in] · weightᵀ + bias, contiguous and all of one dtype (see `with_dtype`), with sums in
// fp32; rows <= 64; bias may be null.
OCTAVO_EXPORT(octavo_packed_product)
(const OctavoPackedWeight* weight, int64_t dtype, const void* x, const void* bias, int64_t rows, void* result,
 int64_t num_threads) {
    with_dtype(dtype, [&](auto type) {
        using Dtype = decltype(type);
        using Stored = typename Dtype::Stored;
        WideRows<Dtype> wide(x, rows, weight->in_features);
        Results<Dtype> results{static_cast<const Stored*>(bias), static_cast<Stored*>(result), weight->out_features};
        multiply_by(Product<Dtype>{*weight, wide, rows, results}, num_threads);
    });
}

// Rows [begin, begin + count) of the weight as fp32 [count, in], each value rounded to the dtype of the weight's values.
OCTAVO_EXPORT(octavo_packed_rows)
(const OctavoPackedWeight* weight, int64_t first, int64_t count, float* result, int64_t num_threads) {
    parallel(count, num_threads, [&](int64_t begin, int64_t end) {
        Decoder<Store> decoder(*weight);
        alignas(64) float decoded[CHUNK];
        for (int64_t row = begin; row < end; ++row)
            for (int64_t column = 0; column < weight->in_features; column += CHUNK) {
                int64_t part = std::min(CHUNK, weight->in_features - column);
                decode(decoder, first + row, column, part, decoded);
                std::memcpy(result + row * weight->in_features + column, decoded, part * sizeof(float));
            }
    });
}
