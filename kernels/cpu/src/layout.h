// Which elements of a contiguous tensor share a scale, and its division into pieces for threads and caches.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t MAX_DIMS = 8;
constexpr int64_t PIECE = 8192;  // elements; the piece and its results fit the cache next to a core
constexpr int64_t SET = 65536;   // elements of pieces that are read twice, the second time from the cache

// Dims of lengths n, cut into blocks of lengths b, the last ones shorter; block [i, j, …] has scale [i, j, …].
// Mirrors `CLayout` of layout.py.
struct Layout {
    int64_t num_dims;
    int64_t n[MAX_DIMS];
    int64_t b[MAX_DIMS];
};

// Consecutive elements: of whole blocks of the last dim, or of a part of one.
struct Piece {
    int64_t start, count;  // elements
    int64_t scale;         // index of the scale of the first
};

// Numbers the pieces of a tensor so that those of the same scales, lying in different rows, follow each other.
class Pieces {
   public:
    // `are_read_twice`: so few blocks in a set that all its pieces stay in the cache.
    explicit Pieces(const Layout& layout, bool are_read_twice = false)
        : layout_(layout), outer_(layout.num_dims - 1), inner_(layout.n[outer_]) {
        block = layout.b[outer_];
        for (int64_t d = 0; d < outer_; ++d) {
            num_rows *= layout.b[d];
            num_groups_ *= blocks(d);
        }
        is_split = block > PIECE;
        int64_t blocks_in_piece = PIECE / block, blocks_in_set = SET / (block * num_rows);
        if (are_read_twice && blocks_in_set < blocks_in_piece) blocks_in_piece = blocks_in_set;
        span_ = is_split ? block : blocks_in_piece * block;
        length_ = is_split ? PIECE : span_;
        parts_ = (span_ + length_ - 1) / length_;
        num_ranges_ = (inner_ + span_ - 1) / span_ * parts_;
    }

    // The number of sets of pieces of the same scales; each has `num_rows` pieces.
    int64_t num_sets() const { return num_groups_ * num_ranges_; }

    // Finds piece `row` of a set; false where it lies beyond the tensor's end.
    bool find(int64_t set, int64_t row, Piece& piece) const {
        int64_t range = set % num_ranges_, group = set / num_ranges_;
        int64_t first = range / parts_ * span_ + range % parts_ * length_;
        int64_t end = range / parts_ * span_ + span_;
        end = end < inner_ ? end : inner_;
        piece = {first, end - first < length_ ? end - first : length_, first / block};
        int64_t stride = inner_, scale_stride = blocks(outer_);
        for (int64_t d = outer_ - 1; d >= 0; --d) {
            int64_t where = group % blocks(d), index = where * layout_.b[d] + row % layout_.b[d];
            if (index >= layout_.n[d]) return false;
            piece.start += index * stride;
            piece.scale += where * scale_stride;
            group /= blocks(d);
            row /= layout_.b[d];
            stride *= layout_.n[d];
            scale_stride *= blocks(d);
        }
        return piece.count > 0;
    }

    int64_t block = 1;      // along the last dim
    int64_t num_rows = 1;   // of a block
    bool is_split = false;  // whether a block is larger than a piece

   private:
    int64_t blocks(int64_t d) const { return (layout_.n[d] + layout_.b[d] - 1) / layout_.b[d]; }

    const Layout& layout_;
    int64_t outer_, inner_, num_groups_ = 1, num_ranges_ = 1, span_ = 1, length_ = 1, parts_ = 1;
};

}  // namespace
