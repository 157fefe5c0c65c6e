// Work on each element of a tensor with the scale of its block.
#pragma once

#include "format.h"
#include "layout.h"
#include "magnitudes.h"
#include "parallel.h"

namespace {

// Factors of many blocks; `covered` is null where scales have one level.
struct FactorArrays {
    float *step, *inverse, *covered;
};

// Where the factors of scales come from and go to. Mirrors `CScales` of scaling.py.
struct Scaling {
    const Format* format;
    const float* amax;          // of each block; null where it is that of the values
    const float* global_scale;  // null where scales have one level
    const float* global_amax;
    int64_t num_scales, scales_per_global;
    float* factors;  // 3 x num_scales, where `amax` is there
    void* stored;    // scales as a checkpoint holds them, or null
};

inline FactorArrays factor_arrays(float* memory, int64_t num_scales) {
    return {memory, memory + num_scales, memory + 2 * num_scales};
}

// Computes the scales [first, first + count), which share a second-level scale, from `amax`, the first one's.
__attribute__((noinline)) void compute_scales(const Scaling& s, const float* amax, int64_t first, int64_t count, FactorArrays to) {
    const Format f = *s.format;
    int64_t which = s.global_scale != nullptr ? first / s.scales_per_global : 0;
    float global_scale = s.global_scale != nullptr ? s.global_scale[which] : 1.0f;
    float global_amax = s.global_scale != nullptr ? s.global_amax[which] : 0.0f;
    for (int64_t i = 0; i < count; i += WIDTH) {
        int64_t some = count - i < WIDTH ? count - i : WIDTH;
        Scales scales = scales_of(read<Floats>(amax + i, some), f, global_scale, global_amax);
        write(to.step + i, quiet(scales.factors.step), some);
        write(to.inverse + i, quiet(scales.factors.inverse), some);
        write(to.covered + i, scales.factors.covered, some);
        if (s.stored == nullptr) continue;
        if (f.scale == FLOAT32) {
            write(static_cast<int32_t*>(s.stored) + first + i, scales.stored, some);
        } else {
            write(static_cast<uint8_t*>(s.stored) + first + i, lowest_bytes(scales.stored), some);
        }
    }
}

inline Factors factors_of_each(FactorArrays from, int64_t i, int64_t count) {
    return {read<Floats>(from.step + i, count), read<Floats>(from.inverse + i, count),
            read<Floats>(from.covered + i, count)};
}

inline Factors factors_of_one(FactorArrays from, int64_t j) {
    return {all(from.step[j]), all(from.inverse[j]), all(from.covered[j])};
}

// Calls body(index, count, factors) for WIDTH elements of a piece at once, and for what is left of a block.
template <class Body>
inline void over_elements(int64_t count, int64_t block, FactorArrays from, Body body) {
    auto rest = [=](int64_t i, int64_t some, int64_t j) __attribute__((noinline)) {
        body(i, some, block == 1 ? factors_of_each(from, i, some) : factors_of_one(from, j));
    };
    if (block == 1) {
        int64_t i = 0;
        for (; i + WIDTH <= count; i += WIDTH) body(i, WIDTH, factors_of_each(from, i, WIDTH));
        if (i < count) rest(i, count - i, i);
        return;
    }
    for (int64_t first = 0, j = 0; first < count; first += block, ++j) {
        int64_t end = count - first < block ? count : first + block, i = first;
        Factors factors = factors_of_one(from, j);
        for (; i + WIDTH <= end; i += WIDTH) body(i, WIDTH, factors);
        if (i < end) rest(i, end - i, j);
    }
}

inline FactorArrays at(FactorArrays from, int64_t index) {
    return {from.step + index, from.inverse + index, from.covered + index};
}

// Work on a piece of which the first element has the first of the factors. Not a template, and neither is what calls it:
// each of the many kinds of work would be compiled together with all that leads to it.
struct PieceWork {
    void (*function)(const void* context, const Piece& piece, FactorArrays factors);
    const void* context;
};

// Calls work for all pieces, with scales of the calibrated magnitudes `scaling.amax`.
__attribute__((noinline)) void with_static_scales(
    const Pieces& pieces, const Scaling& scaling, int64_t num_threads, PieceWork work) {
    FactorArrays all_of_them = factor_arrays(scaling.factors, scaling.num_scales);
    int64_t chunks_per_global = (scaling.scales_per_global + PIECE - 1) / PIECE;
    int64_t num_chunks = scaling.num_scales / scaling.scales_per_global * chunks_per_global;
    parallel(num_chunks, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            int64_t within = chunk % chunks_per_global * PIECE;
            int64_t first = chunk / chunks_per_global * scaling.scales_per_global + within;
            int64_t rest = scaling.scales_per_global - within;
            compute_scales(scaling, scaling.amax + first, first, rest < PIECE ? rest : PIECE, at(all_of_them, first));
        }
    });
    parallel(pieces.num_sets() * pieces.num_rows, num_threads, [&](int64_t begin, int64_t end) {
        Piece piece{};
        for (int64_t i = begin; i < end; ++i) {
            if (!pieces.find(i / pieces.num_rows, i % pieces.num_rows, piece)) continue;
            work.function(work.context, piece, at(all_of_them, piece.scale));
        }
    });
}

// Computes the scales of one set of pieces from their values.
template <class Dtype>
__attribute__((noinline)) void scales_of_set(
    const Pieces& pieces, int64_t set, const typename Dtype::Stored* x, const Scaling& scaling, FactorArrays factors) {
    float amax[PIECE];
    Piece piece{};
    int64_t num_scales = 0, first = 0;
    for (int64_t row = 0; row < pieces.num_rows; ++row) {
        if (!pieces.find(set, row, piece)) continue;
        if (num_scales == 0) {
            num_scales = (piece.count + pieces.block - 1) / pieces.block;
            first = piece.scale;
            memset(amax, 0, static_cast<size_t>(num_scales) * sizeof(float));
        }
        auto bits = reinterpret_cast<int32_t*>(amax);
        raise_to_magnitudes<Dtype>(x + piece.start, piece.count, pieces.block, bits);
    }
    compute_scales(scaling, amax, first, num_scales, factors);
}

// The same with scales of the values at hand, while these are in the cache. No block is larger than a piece.
template <class Dtype>
__attribute__((noinline)) void with_dynamic_scales(
    const Pieces& pieces, const void* x, const Scaling& scaling, int64_t num_threads, PieceWork work) {
    auto values = static_cast<const typename Dtype::Stored*>(x);
    parallel(pieces.num_sets(), num_threads, [&](int64_t begin, int64_t end) {
        float memory[3 * PIECE];
        FactorArrays factors = factor_arrays(memory, PIECE);
        Piece piece{};
        for (int64_t set = begin; set < end; ++set) {
            scales_of_set<Dtype>(pieces, set, values, scaling, factors);
            for (int64_t row = 0; row < pieces.num_rows; ++row) {
                if (pieces.find(set, row, piece)) work.function(work.context, piece, factors);
            }
        }
    });
}

// Calls work(piece, factors) for all pieces of `x`, on threads.
template <class Dtype, class Work>
void over_pieces(const Layout& layout, const Scaling& scaling, const void* x, int64_t num_threads, const Work& work) {
    PieceWork erased{[](const void* context, const Piece& piece, FactorArrays factors) {
                         (*static_cast<const Work*>(context))(piece, factors);
                     },
                     &work};
    Pieces pieces(layout, scaling.amax == nullptr);
    if (scaling.amax != nullptr) {
        with_static_scales(pieces, scaling, num_threads, erased);
    } else {
        with_dynamic_scales<Dtype>(pieces, x, scaling, num_threads, erased);
    }
}

// Calls function(dtype, rounding, arithmetic) with constants, for each of which the code is compiled.
template <class Function>
void with_constants(int64_t dtype, const Format& f, Function function) {
    with_dtype(dtype, [&](auto type) {
        with_rounding(f.rounding, [&](auto rounding) {
            with_arithmetic(f.arithmetic, [&](auto arithmetic) { function(type, rounding, arithmetic); });
        });
    });
}

}  // namespace
