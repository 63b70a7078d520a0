// The rows that a block takes, stage by stage: those of the samples that matter to it.
#pragma once

#include <stdint.h>

namespace gradroute {

// Rows that a stage holds: of sample n, whose weight in a tile of one region this is, up to its last?
struct Work {
    uint64_t row, end;
    uint32_t n;
    float weight;
    bool finishes;
};
constexpr uint32_t NOBODY = 0xFFFFFFFFu;

// The 32 samples that a warp looks at, one a lane. In shared memory, where they cost no registers.
struct Window {
    uint64_t begin[32], end[32];
    float weight[32];
};

// Walks through the rows of the samples that matter here, in order, ROWS at a time.
template <int ROWS>
struct Cursor {
    Window &window;
    Work now;
    uint32_t base, last;
    // Which of the samples from `base` on are still to come.
    uint32_t coming = 0;

    // `needed(n, weight)`: whether sample n matters; sets its weight.
    template <typename Needed>
    __device__ Cursor(Window &window, uint32_t first, uint32_t last, const uint64_t *offsets,
                      const Needed &needed)
        : window(window), base(first - 32), last(last) {
        next(offsets, needed);
    }
    template <typename Needed>
    __device__ void next(const uint64_t *offsets, const Needed &needed) {
        const uint32_t own = threadIdx.x % 32;
        while (coming == 0) {
            base += 32;
            if (base >= last) {
                now.n = NOBODY;
                return;
            }
            const uint32_t n = base + own;
            const uint64_t begin = n < last ? offsets[n] : 0, end = n < last ? offsets[n + 1] : 0;
            __syncwarp();
            window.begin[own] = begin;
            window.end[own] = end;
            const bool matters = begin < end && needed(n, window.weight[own]);
            __syncwarp();
            coming = __ballot_sync(0xffffffffu, matters);
        }
        const int lane = __ffs(coming) - 1;
        coming &= coming - 1;
        now.n = base + lane;
        now.row = window.begin[lane];
        now.end = window.end[lane];
        now.weight = window.weight[lane];
        now.finishes = now.row + ROWS >= now.end;
    }
    template <typename Needed>
    __device__ void advance(const uint64_t *offsets, const Needed &needed) {
        if (now.finishes) {
            next(offsets, needed);
        } else {
            now.row += ROWS;
            now.finishes = now.row + ROWS >= now.end;
        }
    }
};

}  // namespace gradroute
