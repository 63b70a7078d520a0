// Sums over a block, and single columns of a gradient matrix.
#pragma once

#include "element.cuh"
#include "philox.cuh"
#include "routing.cuh"

namespace gradroute {

constexpr int THREADS = GRADROUTE_THREADS;
constexpr int WARPS = GRADROUTE_WARPS;

// Sum over the warp, in a fixed order; every lane gets it.
template <typename T>
__device__ inline T warp_sum(T value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    return value;
}

// Sum over the block's threads, in a fixed order; every thread gets it.
template <typename T>
__device__ inline T block_sum(T value, T *shared) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
    }
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        sum += shared[warp];
    }
    return sum;
}

// Adds the sketch of column `column` of sample n's gradient matrix, g [outputs], times a factor, to
// `own`. One warp.
__device__ inline void sketch_column(const Routing &routing, uint32_t n, const float *g,
                                     uint32_t column, float factor, float *own) {
    const GradrouteLayer &layer = routing.layer;
    const uint32_t lane = threadIdx.x % 32;
    const auto value = [&](uint32_t o) {
        if (o >= layer.outputs) {
            return 0.0f;
        }
        const float plain = g[o];
        const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
        return factor * (routed ? weigh(routing.weight(n, routing.column_region(o, column)), plain) : plain);
    };
    if (layer.sketch == GRADROUTE_SKETCH_COUNT) {
        const uint32_t buckets = layer.sketch_inputs, blocks = (layer.outputs + 7) / 8;
        for (uint32_t first = 0; first < blocks; first += 32) {
            const MicroBlock drawn =
                micro_block(layer.seed, layer.layer, first + lane, column / 8, buckets);
            for (uint32_t at = 0; at < 32 && first + at < blocks; ++at) {
                MicroBlock block;
                block.signs_low = __shfl_sync(0xffffffffu, drawn.signs_low, at);
                block.signs_high = __shfl_sync(0xffffffffu, drawn.signs_high, at);
                block.base = __shfl_sync(0xffffffffu, drawn.base, at);
                block.flip = __shfl_sync(0xffffffffu, drawn.flip, at);
                const uint32_t e = 8 * lane + column % 8;
                if (lane < 8) {
                    const uint32_t bits = __float_as_uint(value(8 * (first + at) + lane));
                    own[block.bucket(e, buckets)] += __uint_as_float(bits ^ block.sign(e));
                }
                __syncwarp();
            }
        }
        return;
    }
    const uint32_t k_o = layer.sketch_outputs, k_i = layer.sketch_inputs;
    for (uint32_t word = 0; word < (k_o + 31) / 32; ++word) {
        // Lane `a` gets the sum under column 32 · word + a of P_o.
        float sum = 0.0f;
        for (uint32_t first = 0; first < layer.outputs; first += 32) {
            const float mine = value(first + lane);
            const uint32_t signs = word == 0 ? first_sign_word(layer, SIDE_OUTPUTS, first + lane)
                                             : sign_word(layer, SIDE_OUTPUTS, first + lane, word);
            for (uint32_t from = 0; from < 32; ++from) {
                const uint32_t bits = __float_as_uint(__shfl_sync(0xffffffffu, mine, from));
                const uint32_t word_of = __shfl_sync(0xffffffffu, signs, from);
                sum += __uint_as_float(bits ^ (word_of >> lane & 1) << 31);
            }
        }
        const uint32_t a = 32 * word + lane;
        for (uint32_t b = 0; b < k_i; ++b) {
            const uint32_t signs = b < 32 ? first_sign_word(layer, SIDE_INPUTS, column)
                                          : sign_word(layer, SIDE_INPUTS, column, b / 32);
            if (a < k_o) {
                own[uint64_t(a) * k_i + b] += signs >> b % 32 & 1 ? -sum : sum;
            }
        }
    }
}

}  // namespace gradroute
