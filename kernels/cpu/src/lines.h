// Numbers in memory that begins with a line of the processor's cache: vectors that span two lines are slower.
#pragma once

#include <cstdint>
#include <memory>

namespace {

class Lines {
public:
    // All zero.
    explicit Lines(int64_t count)
        : lines_(std::make_unique<Line[]>(static_cast<size_t>((count + PER_LINE - 1) / PER_LINE))) {}

    float* values() const { return lines_[0].values; }

private:
    static constexpr int64_t PER_LINE = 16;
    struct alignas(64) Line {
        float values[PER_LINE];
    };

    std::unique_ptr<Line[]> lines_;
};

}  // namespace
