// What a formed tile keeps beside its stages, and the count sketch of a sample's tile.
#pragma once

#include "philox.cuh"
#include "routing.cuh"
#include "tile.cuh"

namespace gradroute {

// Shared memory beside the stages.
struct TileShared {
    // Spans of the tile's rows and columns.
    uint32_t output_span[TILE], input_span[TILE];
    // One word of signs for each row and column of the tile.
    uint32_t output_signs[TILE], input_signs[TILE];
    // The warps' sums of squares.
    float squares[WARPS];
    // Sums of the sample's rows, one for each output.
    float bias[TILE];
};

// Where a warp collects its sketch of the tile: [WARPS][length].
struct Stage {
    float *numbers;
    uint32_t length;

    __device__ float *of(int warp) const { return numbers + uint64_t(warp) * length; }
};

// Places of a lane's two elements of each micro-block in a count sketch: the even bucket of their
// pair, whether they change places (bit 0), their signs (bits 31 and 30). One word for each micro-block
// of the warp and lane, in shared memory: drawn once, they would take 32 registers.
constexpr int PLACES_BYTES = WARPS * 32 * 32 * 4;

__device__ inline void draw_places(uint32_t *words, const GradrouteLayer &layer, uint32_t o,
                                   uint32_t i, const Place &place) {
    // Each lane draws one of the warp's 8 × 4 blocks.
    const MicroBlock own =
        micro_block(layer.seed, layer.layer, (o + place.row) / 8 + place.lane / 4,
                    (i + place.column) / 8 + place.lane % 4, layer.sketch_inputs);
    for (int from = 0; from < 32; ++from) {
        MicroBlock block;
        block.signs_low = __shfl_sync(0xffffffffu, own.signs_low, from);
        block.signs_high = __shfl_sync(0xffffffffu, own.signs_high, from);
        block.base = __shfl_sync(0xffffffffu, own.base, from);
        block.flip = __shfl_sync(0xffffffffu, own.flip, from);
        const uint32_t e = 8 * place.g + 2 * place.t;
        const uint32_t pair = block.bucket(e, layer.sketch_inputs) & ~1u;
        words[(place.warp * 32 + from) * 32 + place.lane] =
            pair | (block.flip & 1) | block.sign(e) | block.sign(e + 1) >> 1;
    }
}

__device__ inline void count_tile(const Accumulator &acc, const uint32_t *words, float *histogram,
                                  const Place &place) {
    const uint32_t *own = words + place.warp * 32 * 32 + place.lane;
#pragma unroll
    for (int block = 0; block < 32; ++block) {
        const uint32_t at = own[block * 32];
        const float *both = &acc[block / 8][block % 4][block / 4 % 2 * 2];
        const float x = __uint_as_float(__float_as_uint(both[0]) ^ (at & 0x80000000u));
        const float y = __uint_as_float(__float_as_uint(both[1]) ^ (at << 1 & 0x80000000u));
        float2 *pair = reinterpret_cast<float2 *>(histogram + (at & 0x3FFFFFFEu));
        float2 sums = *pair;
        sums.x += at & 1 ? y : x;
        sums.y += at & 1 ? x : y;
        *pair = sums;
        // The next block's lanes meet these buckets in another order.
        __syncwarp();
    }
}

}  // namespace gradroute
