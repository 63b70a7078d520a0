// What becomes of one sample's tile of the gradient when its rows are through: squares, sketch,
// weight, running total.
#pragma once

#include "philox.cuh"
#include "routing.cuh"
#include "tile.cuh"

namespace gradroute {

// Regions whose weights are kept in shared memory; of more, the others are looked up.
constexpr uint32_t REGIONS = 64;

// Shared memory beside the stages.
struct TileShared {
    // Spans of the tile's rows and columns.
    uint32_t output_span[TILE], input_span[TILE];
    // One word of signs for each row and column of the tile.
    uint32_t output_signs[TILE], input_signs[TILE];
    // The sample's weights by region, the first of them.
    float weights[REGIONS];
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

__device__ inline float largest(const Accumulator &acc) {
    float magnitude = 0.0f;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        magnitude = fmaxf(magnitude, fabsf((&acc[0][0][0])[at]));
    }
    return magnitude;
}

// Rows of T = P_iᵀ · tileᵀ, 16 of its columns of P_i from bit `bit` of the signs: [16, 64], in f32,
// times the scale's inverse.
__device__ inline void project_columns(float (&product)[8][4], const Accumulator &acc, float scale,
                                       const uint32_t *signs, uint32_t bit, const Place &place) {
    const float back = __uint_as_float(0x7F000000u - __float_as_uint(scale));
#pragma unroll
    for (int o = 0; o < 8; ++o) {
        product[o][0] = product[o][1] = product[o][2] = product[o][3] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const uint32_t *own = signs + place.column + 16 * k + 2 * place.t;
        const uint32_t a[4] = {sign_pair(own[0], own[1], bit + place.g),
                               sign_pair(own[0], own[1], bit + place.g + 8),
                               sign_pair(own[8], own[9], bit + place.g),
                               sign_pair(own[8], own[9], bit + place.g + 8)};
#pragma unroll
        for (int o = 0; o < 8; ++o) {
            const float *first = &acc[o / 2][2 * k][o % 2 * 2];
            const float *second = &acc[o / 2][2 * k + 1][o % 2 * 2];
            const Split x(first[0], first[1], scale), y(second[0], second[1], scale);
            multiply<__half>(product[o], a, x.high, y.high);
            multiply<__half>(product[o], a, x.low, y.low);
        }
    }
#pragma unroll
    for (int o = 0; o < 8; ++o) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            product[o][e] *= back;
        }
    }
}

// Sᵀ = T · P_o, 8 columns of P_o from bit `bit` of the signs: [16, 8].
__device__ inline void project_rows(float (&sum)[4], const float (&product)[8][4], float scale,
                                    const uint32_t *signs, uint32_t bit, const Place &place) {
    sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    const float back = __uint_as_float(0x7F000000u - __float_as_uint(scale));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const float *pair = &product[2 * k + part / 2][part % 2 * 2];
            const Split split(pair[0], pair[1], scale);
            high[part] = split.high;
            low[part] = split.low;
        }
        const uint32_t *own = signs + place.row + 16 * k + 2 * place.t;
        const uint32_t b0 = sign_pair(own[0], own[1], bit + place.g);
        const uint32_t b1 = sign_pair(own[8], own[9], bit + place.g);
        multiply<__half>(sum, high, b0, b1);
        multiply<__half>(sum, low, b0, b1);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        sum[e] *= back;
    }
}

// Draws word `word` of the signs of the tile's rows or columns, unless it stays the same.
__device__ inline void draw_signs(uint32_t *signs, const GradrouteLayer &layer, uint32_t side,
                                  uint32_t first, uint32_t word) {
    __syncthreads();
    if (threadIdx.x < TILE) {
        signs[threadIdx.x] = sign_word(layer.seed, layer.layer, side, first + threadIdx.x, word);
    }
    __syncthreads();
}

// P_oᵀ · tile · P_i of the warp's part into its stage, the 1/√k left out. All threads of the block.
__device__ inline void two_sided(const Accumulator &acc, const GradrouteLayer &layer, uint32_t o,
                                 uint32_t i, TileShared &shared, float *to, const Place &place) {
    const uint32_t k_o = layer.sketch_outputs, k_i = layer.sketch_inputs;
    float scale = split_scale(largest(acc));
    for (uint32_t b = 0; b < k_i; b += 16) {
        // Hides that the scaled parts are the same each time: kept, they would take 64 registers.
        asm volatile("" : "+f"(scale));
        if (k_i > 32 && b % 32 == 0) {
            draw_signs(shared.input_signs, layer, SIDE_INPUTS, i, b / 32);
        }
        float product[8][4];
        project_columns(product, acc, scale, shared.input_signs, b % 32, place);
        float magnitude = 0.0f;
#pragma unroll
        for (int at = 0; at < 32; ++at) {
            magnitude = fmaxf(magnitude, fabsf(product[at / 4][at % 4]));
        }
        float rescale = split_scale(magnitude);
        for (uint32_t a = 0; a < k_o; a += 8) {
            asm volatile("" : "+f"(rescale));
            if (k_o > 32 && a % 32 == 0) {
                draw_signs(shared.output_signs, layer, SIDE_OUTPUTS, o, a / 32);
            }
            float sum[4];
            project_rows(sum, product, rescale, shared.output_signs, a % 32, place);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t column = b + place.g + e / 2 * 8, row = a + 2 * place.t + e % 2;
                if (column < k_i && row < k_o) {
                    to[uint64_t(row) * k_i + column] = sum[e];
                }
            }
        }
    }
}

}  // namespace gradroute
