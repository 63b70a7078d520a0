// The two-sided sketch of a sample's tile, P_oᵀ · G · P_i: from the finished tile, or from its rows.
//
// From the tile: each warp projects its part of G on P_i, the warps of one row of the tile add up,
// and the sums, T, are projected on P_o. G and T are f32: each is split into two f16 numbers, whose
// products are exact. That costs 36 matrix instructions a warp and sample for 16 × 16.
//
// From the rows: U = dY · P_o and V = X · P_i of the rows in shared memory, each by the blocks whose
// turn it is; Uᵀ · V is left to a second stage. Inputs and signs are exact as they are.
#pragma once

#include "count.cuh"

namespace gradroute {

// Sums T of the two rows of warps: [2][8][32] float4, in the order of the lanes' fragments.
constexpr int SUMS_BYTES = 2 * 8 * 32 * 16;

__device__ inline float largest(const Accumulator &acc) {
    float magnitude = 0.0f;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        magnitude = fmaxf(magnitude, fabsf((&acc[0][0][0])[at]));
    }
    return magnitude;
}

// Of T = P_iᵀ · tileᵀ the part of 32 rows of the tile, from row 32 · half of the warp's on: 16 columns of
// P_i from bit `bit` of the signs, [16, 32], in f32.
__device__ inline void project_columns(float (&product)[4][4], const Accumulator &acc, int half,
                                       float scale, const uint32_t *signs, uint32_t bit,
                                       const Place &place) {
    const float back = power_inverse(scale);
#pragma unroll
    for (int o = 0; o < 4; ++o) {
        product[o][0] = product[o][1] = product[o][2] = product[o][3] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const uint32_t *own = signs + place.column + 16 * k + 2 * place.t;
        const uint32_t a[4] = {sign_pair<__half>(own[0], own[1], bit + place.g),
                               sign_pair<__half>(own[0], own[1], bit + place.g + 8),
                               sign_pair<__half>(own[8], own[9], bit + place.g),
                               sign_pair<__half>(own[8], own[9], bit + place.g + 8)};
#pragma unroll
        for (int o = 0; o < 4; ++o) {
            const float *first = &acc[2 * half + o / 2][2 * k][o % 2 * 2];
            const float *second = &acc[2 * half + o / 2][2 * k + 1][o % 2 * 2];
            const Split x(first[0], first[1], scale), y(second[0], second[1], scale);
            multiply<__half>(product[o], a, x.high, y.high);
            multiply<__half>(product[o], a, x.low, y.low);
        }
    }
#pragma unroll
    for (int o = 0; o < 4; ++o) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            product[o][e] *= back;
        }
    }
}

// Adds the parts of a row of warps to `sums`, one after the other. All threads of the block.
__device__ inline void add_up(const float (&product)[4][4], float4 *sums, const Place &place) {
#pragma unroll 1
    for (int turn = 0; turn < 4; ++turn) {
        if (place.warp % 4 == turn) {
#pragma unroll
            for (int o = 0; o < 4; ++o) {
                const float(&mine)[4] = product[o];
                float4 sum = make_float4(mine[0], mine[1], mine[2], mine[3]);
                if (turn > 0) {
                    const float4 before = sums[o * 32];
                    sum.x += before.x;
                    sum.y += before.y;
                    sum.z += before.z;
                    sum.w += before.w;
                }
                sums[o * 32] = sum;
            }
        }
        __syncthreads();
    }
}

// Sᵀ = T · P_o of 16 rows of the tile, 8 columns of P_o from bit `bit` of the signs: [16, 8].
__device__ inline void project_rows(float (&sum)[4], const float (&own)[8], float scale,
                                    const uint32_t *signs, uint32_t bit, const Place &place) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        const Split split(own[2 * part], own[2 * part + 1], scale);
        high[part] = split.high;
        low[part] = split.low;
    }
    const uint32_t *rows = signs + place.row + place.warp % 4 * 16 + 2 * place.t;
    const uint32_t b0 = sign_pair<__half>(rows[0], rows[1], bit + place.g);
    const uint32_t b1 = sign_pair<__half>(rows[8], rows[9], bit + place.g);
    sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    multiply<__half>(sum, high, b0, b1);
    multiply<__half>(sum, low, b0, b1);
    const float back = power_inverse(scale);
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
        signs[threadIdx.x] = sign_word(layer, side, first + threadIdx.x, word);
    }
    __syncthreads();
}

// The warp's share of P_oᵀ · tile · P_i, the 1/√k left out. All threads of the block.
__device__ inline void two_sided(const Accumulator &acc, const GradrouteLayer &layer, uint32_t o,
                                 uint32_t i, TileShared &shared, float4 *sums, float *to,
                                 const Place &place) {
    const uint32_t k_o = layer.sketch_outputs, k_i = layer.sketch_inputs;
    float scale = split_scale(largest(acc));
    for (uint32_t b = 0; b < k_i; b += 16) {
        // Hides that the scaled parts are the same each time: kept, they would take 64 registers.
        asm volatile("" : "+f"(scale));
        if (k_i > 32 && b % 32 == 0) {
            draw_signs(shared.input_signs, layer, SIDE_INPUTS, i, b / 32);
        }
        if (b > 0) {
            __syncthreads();
        }
        float4 *at = sums + place.warp / 4 * 256 + place.lane;
        // By halves, which take half of the registers.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float product[4][4];
            project_columns(product, acc, half, scale, shared.input_signs, b % 32, place);
            add_up(product, at + half * 128, place);
        }
        // Of the sums this warp projects rows 16 · (warp % 4) .. on.
        float own[8];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float4 sum = at[(place.warp % 4 * 2 + half) * 32];
            own[4 * half] = sum.x;
            own[4 * half + 1] = sum.y;
            own[4 * half + 2] = sum.z;
            own[4 * half + 3] = sum.w;
        }
        float magnitude = 0.0f;
#pragma unroll
        for (int at = 0; at < 8; ++at) {
            magnitude = fmaxf(magnitude, fabsf(own[at]));
        }
        const float rescale = split_scale(magnitude);
        for (uint32_t a = 0; a < k_o; a += 8) {
            if (k_o > 32 && a % 32 == 0) {
                draw_signs(shared.output_signs, layer, SIDE_OUTPUTS, o, a / 32);
            }
            float sum[4];
            project_rows(sum, own, rescale, shared.output_signs, a % 32, place);
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

// Rows `row ..` of U or V, [.., k], k at most 32: the stage's matrix times its side's signs. Four warps,
// of which this is number `quarter`.
template <typename T>
__device__ inline void project_stage(const char *matrix, const uint32_t *signs, float *to, uint64_t row,
                                     uint64_t end, uint32_t k, int quarter, const Place &place) {
    const uint32_t at = shared_address(matrix);
    const int down = quarter / 2 * 16, part = place.lane / 8;
    const bool paired = k % 2 == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(float2) == 0;
    for (uint32_t b = quarter % 2 * 8; b < k; b += 16) {
        float sum[4] = {};
#pragma unroll
        for (int step = 0; step < TILE / 16; ++step) {
            uint32_t rows[4];
            load_matrices(rows, at + Upright<T>::piece(down + (part & 1) * 8 + place.lane % 8,
                                                       2 * step + part / 2));
            const uint32_t *own = signs + 16 * step + 2 * place.t;
            multiply<T>(sum, rows, sign_pair<T>(own[0], own[1], b + place.g),
                        sign_pair<T>(own[8], own[9], b + place.g));
        }
        const uint32_t column = b + 2 * place.t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint64_t here = row + down + place.g + 8 * half;
            float *pair = to + here * k + column;
            if (here >= end || column >= k) {
                continue;
            }
            if (paired) {
                *reinterpret_cast<float2 *>(pair) = make_float2(sum[2 * half], sum[2 * half + 1]);
            } else {
                pair[0] = sum[2 * half];
                if (column + 1 < k) {
                    pair[1] = sum[2 * half + 1];
                }
            }
        }
    }
}

}  // namespace gradroute
