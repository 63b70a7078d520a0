// The rows of the factored path, stage by stage: rows of several samples share a stage.
//
// Of 32 samples at a time, those of one weight follow each other, in their order; then those of the next
// weight. Where the tile lies in several regions, samples of one category and gate have one weight.
#pragma once

#include "cursor.cuh"
#include "routing.cuh"
#include "tile.cuh"

namespace gradroute {

// A row that is not there.
constexpr uint64_t NOWHERE = ~uint64_t(0);
// Stages that are known: the one that is multiplied, two on their way, and the next.
constexpr int LISTS = 4;

// A stage: its rows, how many there are, a sample that they are weighed as, and what tells weights apart.
template <typename T>
struct RowList {
    uint64_t rows[DEPTH<T>];
    uint64_t key;
    uint32_t n, count;
    float weight;
};

// The 32 samples that are looked at, one a lane.
struct Gathering {
    uint64_t begin[32], end[32], key[32];
    float weight[32];
    // Of the samples that follow each other: the places behind their rows, and their rows' distance to
    // their places.
    uint64_t shift[32];
    uint32_t stop[32];
};

// Lists the rows `from .. to` of the samples that matter. One warp.
template <typename T>
struct Gatherer {
    Gathering &shared;
    const uint64_t *offsets;
    const uint64_t from, to;
    uint32_t base, last;
    // Which samples from `base` on are still to come, and who speaks for those that are at turn.
    uint32_t coming = 0, leader = 0;
    // Places that are listed, and all.
    uint32_t at = 0, count = 0;

    __device__ Gatherer(Gathering &shared, const uint64_t *offsets, uint32_t samples, uint64_t from,
                        uint64_t to)
        : shared(shared), offsets(offsets), from(from), to(to) {
        const bool some = from < to;
        base = (some ? sample_of(offsets, samples, from) : 0) - 32;
        last = some ? sample_of(offsets, samples, to - 1) + 1 : 0;
    }

    // `needed(n, weight, key)`: whether sample n matters; sets its weight.
    template <typename Needed>
    __device__ void list(RowList<T> &list, const Needed &needed) {
        const uint32_t lane = threadIdx.x % 32;
        if (at >= count && !gather(needed)) {
            if (lane == 0) {
                list.n = NOBODY;
            }
            return;
        }
        if (lane < DEPTH<T>) {
            const uint32_t place = at + lane;
            uint32_t own = 0;
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
                own += shared.stop[own + step - 1] <= place ? step : 0;
            }
            list.rows[lane] = place < count ? shared.shift[own] + place : NOWHERE;
        }
        if (lane == 0) {
            list.n = base + leader;
            list.key = shared.key[leader];
            list.weight = shared.weight[leader];
            list.count = count - at;
        }
        at += DEPTH<T>;
    }

  private:
    // The next samples of one weight, if there are any.
    template <typename Needed>
    __device__ bool gather(const Needed &needed) {
        const uint32_t lane = threadIdx.x % 32;
        __syncwarp();
        while (coming == 0) {
            base += 32;
            if (int32_t(last - base) <= 0) {
                base -= 32;
                return false;
            }
            const uint32_t n = base + lane;
            const uint64_t begin = n < last ? max(offsets[n], from) : 0;
            const uint64_t end = n < last ? min(offsets[n + 1], to) : 0;
            shared.begin[lane] = begin;
            shared.end[lane] = end;
            const bool matters = begin < end && needed(n, shared.weight[lane], shared.key[lane]);
            coming = __ballot_sync(0xffffffffu, matters);
        }
        __syncwarp();
        leader = __ffs(coming) - 1;
        const bool same = (coming >> lane & 1) && shared.key[lane] == shared.key[leader];
        coming &= ~__ballot_sync(0xffffffffu, same);
        const uint32_t length = same ? uint32_t(shared.end[lane] - shared.begin[lane]) : 0;
        uint32_t stop = length;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const uint32_t before = __shfl_up_sync(0xffffffffu, stop, step);
            stop += lane >= step ? before : 0;
        }
        shared.stop[lane] = stop;
        shared.shift[lane] = shared.begin[lane] - (stop - length);
        __syncwarp();
        count = __shfl_sync(0xffffffffu, stop, 31);
        at = 0;
        return true;
    }
};

}  // namespace gradroute
