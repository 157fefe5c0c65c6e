// Codes of less than a byte packed as one little-endian stream of bits for each row, and back; codes to values.
#include "elementwise.h"
#include "isa.h"

namespace {

void pack_row(const uint8_t* codes, int64_t count, int64_t bits, uint8_t* to) {
    int64_t i = 0;
    if (bits == 4) {
        for (; i + 2 <= count; i += 2) to[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
    }
    // Eight codes fill whole bytes together.
    for (; i < count; i += 8) {
        int64_t some = count - i < 8 ? count - i : 8;
        uint64_t word = 0;
        for (int64_t k = 0; k < some; ++k) word |= static_cast<uint64_t>(codes[i + k]) << (k * bits);
        for (int64_t k = 0; k * 8 < some * bits; ++k) to[i * bits / 8 + k] = static_cast<uint8_t>(word >> (8 * k));
    }
}

void unpack_row(const uint8_t* packed, int64_t count, int64_t bits, uint8_t* to) {
    int64_t i = 0;
    if (bits == 4) {
        for (; i + 2 <= count; i += 2) {
            to[i] = packed[i / 2] & 0xF;
            to[i + 1] = packed[i / 2] >> 4;
        }
    }
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    for (; i < count; i += 8) {
        int64_t some = count - i < 8 ? count - i : 8;
        uint64_t word = 0;
        for (int64_t k = 0; k * 8 < some * bits; ++k) word |= static_cast<uint64_t>(packed[i * bits / 8 + k]) << (8 * k);
        for (int64_t k = 0; k < some; ++k) to[i + k] = static_cast<uint8_t>(word >> (k * bits) & mask);
    }
}

}  // namespace

// codes: [rows, columns]; packed: [rows, ⌈columns · bits / 8⌉].
OCTAVO_EXPORT(pack)
(const void* codes, int64_t rows, int64_t columns, int64_t bits, void* packed, int64_t num_threads) {
    int64_t length = (columns * bits + 7) / 8;
    parallel(rows, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            pack_row(static_cast<const uint8_t*>(codes) + row * columns, columns, bits,
                     static_cast<uint8_t*>(packed) + row * length);
        }
    });
}

OCTAVO_EXPORT(unpack)
(const void* packed, int64_t rows, int64_t columns, int64_t bits, void* codes, int64_t num_threads) {
    int64_t length = (columns * bits + 7) / 8;
    parallel(rows, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            unpack_row(static_cast<const uint8_t*>(packed) + row * length, columns, bits,
                       static_cast<uint8_t*>(codes) + row * columns);
        }
    });
}

// result = values[code] · step; `values` has one for each of the 256 bytes, `steps` one for each block.
OCTAVO_EXPORT(dequantize)
(const Layout* layout, const void* codes, const void* values, const void* steps, int64_t dtype, void* result,
 int64_t num_threads) {
    Pieces pieces(*layout);
    auto table = static_cast<const float*>(values);
    with_dtype(dtype, [&](auto type) {
        using Dtype = decltype(type);
        parallel(pieces.num_sets() * pieces.num_rows, num_threads, [&](int64_t begin, int64_t end) {
            Piece piece{};
            for (int64_t k = begin; k < end; ++k) {
                if (!pieces.find(k / pieces.num_rows, k % pieces.num_rows, piece)) continue;
                auto from = static_cast<const uint8_t*>(codes) + piece.start;
                auto to = static_cast<typename Dtype::Stored*>(result) + piece.start;
                auto step = const_cast<float*>(static_cast<const float*>(steps)) + piece.scale;
                over_elements(
                    piece.count, pieces.block, {step, step, step},
                    [=](int64_t i, int64_t count, const Factors& factors) __attribute__((always_inline)) {
                        Floats found{};
                        for (int64_t lane = 0; lane < count; ++lane) found[lane] = table[from[i + lane]];
                        Dtype::store(to + i, quiet(found * factors.step), count);
                    });
            }
        });
    });
}
