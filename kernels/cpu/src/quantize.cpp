// The operator `quantize`, one code in a byte: what packing.cpp packs.
#include "elementwise.h"
#include "isa.h"

OCTAVO_EXPORT(quantize)
(const Layout* layout, const Scaling* scaling, int64_t dtype, const void* x, void* codes, int64_t num_threads) {
    const Format f = *scaling->format;
    with_constants(dtype, f, [&](auto type, auto rounding, auto arithmetic) {
        using Dtype = decltype(type);
        constexpr auto ROUNDING = static_cast<Rounding>(decltype(rounding)::VALUE);
        constexpr auto ARITHMETIC = static_cast<Arithmetic>(decltype(arithmetic)::VALUE);
        over_pieces<Dtype>(*layout, *scaling, x, num_threads, [&](const Piece& piece, FactorArrays arrays) {
            auto from = static_cast<const typename Dtype::Stored*>(x) + piece.start;
            auto to = static_cast<uint8_t*>(codes) + piece.start;
            over_elements(
                piece.count, layout->b[layout->num_dims - 1], arrays,
                [=](int64_t i, int64_t count, const Factors& factors) __attribute__((always_inline)) {
                    Floats steps = in_steps<ARITHMETIC, Dtype>(Dtype::load(from + i, count), factors);
                    write(to + i, lowest_bytes(code_of<ROUNDING>(steps, f)), count);
                });
        });
    });
}
