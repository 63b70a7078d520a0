// The end of an input gradient's tile: each sample's flow weights, and the store.
#pragma once

#include "routing.cuh"
#include "tile.cuh"

namespace gradroute {

// A row of the tile: whether it is there, where it stands in dX, and whose it is.
struct FlowedRow {
    bool there;
    uint64_t row;
    uint32_t sample;
};

// Columns `first .. end` of the tile to rows of dx, which begins at the tile's column 0 and has rows of
// `pitch` numbers, times a factor; `row_of(down)` tells of a row of the tile. A flow weight of 0 selects.
template <typename T, typename RowOf>
__device__ inline void store_flowed(const Accumulator &acc, char *stages, T *dx, uint32_t pitch,
                                    uint32_t first, uint32_t end, float factor,
                                    const Routing &routing, const Place &place,
                                    const RowOf &row_of) {
    const GradrouteLayer &layer = routing.layer;
    const bool routed = layer.regions != 0;
    const bool wide = pitch % 4 == 0 && reinterpret_cast<uintptr_t>(dx) % sizeof(Four<T>) == 0;
    // Of the four columns that the lane writes of each row.
    uint32_t regions[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const uint32_t column = min(first + 4 * place.lane + k, end - 1);
        regions[k] = routing.flow_region(routing.input_span(column));
    }
    drain(acc, stages, place, [&](int down, int right, float4 four) {
        const FlowedRow at = row_of(down);
        const uint32_t column = first + right;
        if (!at.there || column >= end) {
            return;
        }
        const float *flows = routing.table;
        if (routed) {
            flows += uint64_t(routing.categories[at.sample]) * layer.regions;
        }
        const float values[4] = {four.x, four.y, four.z, four.w};
        Four<T> narrowed;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float flow = routed ? flows[regions[k]] : 1.0f;
            narrowed.numbers[k] = narrow<T>(weigh(flow, factor * values[k]));
        }
        T *to = dx + at.row * pitch + column;
        if (wide && column + 4 <= end) {
            *reinterpret_cast<Four<T> *>(to) = narrowed;
            return;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (column + k < end) {
                to[k] = narrowed.numbers[k];
            }
        }
    });
}

}  // namespace gradroute
