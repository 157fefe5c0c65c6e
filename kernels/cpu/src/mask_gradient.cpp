// The operator `fake_quantize_backward`.
#include "elementwise.h"
#include "isa.h"

// result = grad where a value of x does not saturate, else grad · 0, as torch's product with a mask.
OCTAVO_EXPORT(mask_gradient)
(const Layout* layout, const Scaling* scaling, int64_t dtype, const void* x, const void* grad, void* result,
 int64_t num_threads) {
    const Format f = *scaling->format;
    const float low = f.min * (1 + 0x1p-20f), high = f.max * (1 + 0x1p-20f);
    const bool has_covered = scaling->global_scale != nullptr;
    with_dtype(dtype, [&](auto type) {
        with_arithmetic(f.arithmetic, [&](auto arithmetic) {
            using Dtype = decltype(type);
            constexpr auto ARITHMETIC = static_cast<Arithmetic>(decltype(arithmetic)::VALUE);
            over_pieces<Dtype>(*layout, *scaling, x, num_threads, [&](const Piece& piece, FactorArrays arrays) {
                auto from = static_cast<const typename Dtype::Stored*>(x) + piece.start;
                auto with = static_cast<const typename Dtype::Stored*>(grad) + piece.start;
                auto to = static_cast<typename Dtype::Stored*>(result) + piece.start;
                over_elements(
                    piece.count, layout->b[layout->num_dims - 1], arrays,
                    [=](int64_t i, int64_t count, const Factors& factors) __attribute__((always_inline)) {
                        Floats value = Dtype::load(from + i, count), slope = Dtype::load(with + i, count);
                        Floats steps = in_steps<ARITHMETIC, Dtype>(value, factors);
                        Ints inside = (steps >= low) & (steps <= high);
                        if (has_covered) inside |= magnitude(value) <= factors.covered;
                        Dtype::store(to + i, inside ? slope : slope * 0.0f, count);
                    });
            });
        });
    });
}
