// The operator `amax`: the largest magnitude of each block of a tensor.
#include "isa.h"
#include "magnitudes.h"
#include "parallel.h"

namespace {

void raise_shared(int32_t* shared, int32_t value) {
    int32_t found = __atomic_load_n(shared, __ATOMIC_RELAXED);
    while (found < value &&
           !__atomic_compare_exchange_n(shared, &found, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

// The pieces [begin, end), of which those of one set lie together, so that each set is added to `amax` once.
template <class Dtype>
void amax_of_pieces(const Pieces& pieces, const typename Dtype::Stored* x, int32_t* amax, int64_t begin, int64_t end) {
    int32_t largest[PIECE];
    for (int64_t at = begin; at < end;) {
        int64_t set = at / pieces.num_rows, stop = (set + 1) * pieces.num_rows;
        bool is_whole = at == set * pieces.num_rows && stop <= end && !pieces.is_split;
        Piece piece{};
        int64_t scale = 0, num_scales = 0;
        for (; at < stop && at < end; ++at) {
            if (!pieces.find(set, at % pieces.num_rows, piece)) continue;
            if (num_scales == 0) {
                num_scales = (piece.count + pieces.block - 1) / pieces.block;
                scale = piece.scale;
                memset(largest, 0, static_cast<size_t>(num_scales) * sizeof(int32_t));
            }
            raise_to_magnitudes<Dtype>(x + piece.start, piece.count, pieces.block, largest);
        }
        if (is_whole) memcpy(amax + scale, largest, static_cast<size_t>(num_scales) * sizeof(int32_t));
        for (int64_t i = 0; i < num_scales && !is_whole; ++i) raise_shared(amax + scale + i, largest[i]);
    }
}

}  // namespace

// `amax`: fp32, zeros, one for each block.
OCTAVO_EXPORT(amax)(const Layout* layout, int64_t dtype, const void* x, void* amax, int64_t num_threads) {
    Pieces pieces(*layout);
    with_dtype(dtype, [&](auto type) {
        using Dtype = decltype(type);
        parallel(pieces.num_sets() * pieces.num_rows, num_threads, [&](int64_t begin, int64_t end) {
            auto values = static_cast<const typename Dtype::Stored*>(x);
            amax_of_pieces<Dtype>(pieces, values, static_cast<int32_t*>(amax), begin, end);
        });
    });
}
