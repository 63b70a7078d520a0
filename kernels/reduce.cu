// Second stages: partial results added in a fixed order, and the vectors beside a layer's matrix.
#include "element.cuh"
#include "philox.cuh"
#include "routing.cuh"

namespace gradroute {

constexpr int THREADS = GRADROUTE_THREADS;
constexpr int WARPS = GRADROUTE_WARPS;

// Sum over the block's threads, in a fixed order; every thread gets it.
__device__ inline float block_sum(float value, float *shared) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        sum += shared[warp];
    }
    return sum;
}

// dw (+)= Σ totals[part], element by element.
template <typename T>
__device__ inline void reduce_totals(const GradrouteLayer &layer, const float *totals,
                                     uint32_t parts, void *dw) {
    const uint64_t weights = uint64_t(layer.outputs) * layer.inputs;
    const uint64_t step = uint64_t(gridDim.x) * THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * THREADS + threadIdx.x; at < weights; at += step) {
        float sum = NOTHING;
        for (uint32_t part = 0; part < parts; ++part) {
            sum += totals[part * weights + at];
        }
        if (layer.flags & GRADROUTE_NATIVE) {
            deliver(static_cast<T *>(dw) + at, sum, layer.flags & GRADROUTE_ACCUMULATE);
        } else {
            deliver(static_cast<float *>(dw) + at, sum, layer.flags & GRADROUTE_ACCUMULATE);
        }
    }
}

// Sum of a sample's rows, 32 columns a block: g [N, width].
template <typename T>
__device__ inline void sum_rows(const GradrouteLayer &layer, const T *dy, const uint64_t *offsets,
                                float *g) {
    __shared__ float sums[WARPS][32];
    const uint32_t n = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < layer.outputs) {
        for (uint64_t row = offsets[n] + warp; row < offsets[n + 1]; row += WARPS) {
            sum += widen(dy[row * layer.outputs + column]);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < layer.outputs) {
        sum = 0.0f;
#pragma unroll
        for (int other = 0; other < WARPS; ++other) {
            sum += sums[other][lane];
        }
        g[uint64_t(n) * layer.outputs + column] = sum;
    }
}

// (+)= Σ_n weight · g[n], for a vector g [N, outputs] beside the matrix.
template <typename T>
__device__ inline void weigh_vectors(const GradrouteLayer &layer, const float *g,
                                     const uint64_t *offsets, const Routing &routing, void *to) {
    const uint32_t o = blockIdx.x * THREADS + threadIdx.x;
    if (o >= layer.outputs) {
        return;
    }
    const uint32_t region = routing.bias_region(o);
    float sum = NOTHING;
    for (uint32_t n = 0; n < layer.samples; ++n) {
        const float weight = routing.weight(n, region);
        if (weight != 0.0f && offsets[n] < offsets[n + 1]) {
            sum += weight * g[uint64_t(n) * layer.outputs + o];
        }
    }
    if (layer.flags & GRADROUTE_NATIVE) {
        deliver(static_cast<T *>(to) + o, sum, layer.flags & GRADROUTE_ACCUMULATE);
    } else {
        deliver(static_cast<float *>(to) + o, sum, layer.flags & GRADROUTE_ACCUMULATE);
    }
}

}  // namespace gradroute

#define REDUCE(NAME, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        reduce_totals_##NAME(const __grid_constant__ GradrouteLayer layer, const float *totals,    \
                             uint32_t parts, void *dw) {                                           \
        gradroute::reduce_totals<T>(layer, totals, parts, dw);                                     \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        sum_rows_##NAME(const __grid_constant__ GradrouteLayer layer, const T *dy,                 \
                        const uint64_t *offsets, float *g) {                                       \
        gradroute::sum_rows(layer, dy, offsets, g);                                                \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        weigh_vectors_##NAME(const __grid_constant__ GradrouteLayer layer, const float *g,         \
                             const uint64_t *offsets, const uint32_t *categories,                  \
                             const float *table, const float *gates, const uint32_t *map,          \
                             void *to) {                                                           \
        const gradroute::Routing routing{layer, categories, table, gates, map};                    \
        gradroute::weigh_vectors<T>(layer, g, offsets, routing, to);                               \
    }

REDUCE(f32, float)
REDUCE(f16, __half)
REDUCE(bf16, __nv_bfloat16)

// Squared norms from the tiles' parts: sq_norm[n] = scale² · Σ squares[n, ..], one block a sample.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    reduce_squares(const __grid_constant__ GradrouteLayer layer, const uint64_t *offsets,
                   const float *squares, uint64_t parts, float *sq_norm) {
    __shared__ float shared[GRADROUTE_WARPS];
    const uint32_t n = blockIdx.x;
    float sum = 0.0f;
    if (offsets[n] < offsets[n + 1]) {
        for (uint64_t at = threadIdx.x; at < parts; at += GRADROUTE_THREADS) {
            sum += squares[n * parts + at];
        }
    }
    sum = gradroute::block_sum(sum, shared);
    if (threadIdx.x == 0) {
        sq_norm[n] = layer.sample_scale * layer.sample_scale * sum;
    }
}

// Sketches from the tiles' parts: sketch[n] = factor · Σ sketches[n, ..].
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    reduce_sketches(const __grid_constant__ GradrouteLayer layer, const uint64_t *offsets,
                    const float *sketches, uint64_t tiles, uint32_t length, float factor,
                    float *sketch) {
    const uint32_t n = blockIdx.y, k = blockIdx.x * GRADROUTE_THREADS + threadIdx.x;
    if (k >= length) {
        return;
    }
    float sum = 0.0f;
    if (offsets[n] < offsets[n + 1]) {
        for (uint64_t tile = 0; tile < tiles; ++tile) {
            sum += sketches[(n * tiles + tile) * length + k];
        }
    }
    sketch[uint64_t(n) * length + k] = factor * sum;
}

// Squared norms of vectors g [N, outputs], one block a sample.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    square_vectors(const __grid_constant__ GradrouteLayer layer, const float *g, float *sq_norm) {
    __shared__ float shared[GRADROUTE_WARPS];
    const uint32_t n = blockIdx.x;
    float sum = 0.0f;
    for (uint32_t o = threadIdx.x; o < layer.outputs; o += GRADROUTE_THREADS) {
        const float value = g[uint64_t(n) * layer.outputs + o];
        sum += value * value;
    }
    sum = gradroute::block_sum(sum, shared);
    if (threadIdx.x == 0) {
        sq_norm[n] = layer.sample_scale * layer.sample_scale * sum;
    }
}

// Adds the sketch of column `column` of each sample's gradient matrix, g [N, outputs], to what stands
// there; one block of one warp a sample.
extern "C" __global__ void __launch_bounds__(32)
    sketch_vectors(const __grid_constant__ GradrouteLayer layer, const float *g,
                   const uint32_t *categories, const float *table, const float *gates,
                   const uint32_t *map, uint32_t column, float factor, float *sketch) {
    using namespace gradroute;
    const Routing routing{layer, categories, table, gates, map};
    const uint32_t n = blockIdx.x, lane = threadIdx.x;
    const auto value = [&](uint32_t o) {
        if (o >= layer.outputs) {
            return 0.0f;
        }
        const float plain = g[uint64_t(n) * layer.outputs + o];
        const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
        return factor * (routed ? weigh(routing.weight(n, routing.bias_region(o)), plain) : plain);
    };
    if (layer.sketch == GRADROUTE_SKETCH_COUNT) {
        const uint32_t buckets = layer.sketch_inputs, blocks = (layer.outputs + 7) / 8;
        float *own = sketch + uint64_t(n) * buckets;
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
    float *own = sketch + uint64_t(n) * k_o * k_i;
    for (uint32_t word = 0; word < (k_o + 31) / 32; ++word) {
        // Lane `a` gets the sum under column 32 · word + a of P_o.
        float sum = 0.0f;
        for (uint32_t first = 0; first < layer.outputs; first += 32) {
            const float mine = value(first + lane);
            const uint32_t signs =
                sign_word(layer.seed, layer.layer, SIDE_OUTPUTS, first + lane, word);
            for (uint32_t from = 0; from < 32; ++from) {
                const uint32_t bits = __float_as_uint(__shfl_sync(0xffffffffu, mine, from));
                const uint32_t word_of = __shfl_sync(0xffffffffu, signs, from);
                sum += __uint_as_float(bits ^ (word_of >> lane & 1) << 31);
            }
        }
        const uint32_t a = 32 * word + lane;
        for (uint32_t b = 0; b < k_i; ++b) {
            const uint32_t sign =
                sign_word(layer.seed, layer.layer, SIDE_INPUTS, column, b / 32) >> b % 32 & 1;
            if (a < k_o) {
                own[uint64_t(a) * k_i + b] += sign ? -sum : sum;
            }
        }
    }
}

// Which regions a sample of at least one row trains.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    touched_regions(const __grid_constant__ GradrouteLayer layer, const uint64_t *offsets,
                    const uint32_t *categories, const float *table, const float *gates,
                    uint8_t *touched) {
    const gradroute::Routing routing{layer, categories, table, gates, nullptr};
    const uint32_t region = blockIdx.x * GRADROUTE_THREADS + threadIdx.x;
    if (region >= max(layer.regions, 1u)) {
        return;
    }
    bool any = false;
    for (uint32_t n = 0; n < layer.samples && !any; ++n) {
        any = offsets[n] < offsets[n + 1] && routing.weight(n, region) != 0.0f;
    }
    touched[region] = any;
}
