// Second stages: partial results added in a fixed order, and the vectors beside a layer's matrix.
#include "vectors.cuh"

namespace gradroute {

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

// (+)= Σ_n weight · g[n], for a column g [N, outputs] of the gradient matrix.
template <typename T>
__device__ inline void weigh_vectors(const GradrouteLayer &layer, const float *g,
                                     const uint64_t *offsets, const Routing &routing,
                                     uint32_t column, void *to) {
    const uint32_t o = blockIdx.x * THREADS + threadIdx.x;
    if (o >= layer.outputs) {
        return;
    }
    const uint32_t region = routing.column_region(o, column);
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
                             uint32_t column, void *to) {                                          \
        const gradroute::Routing routing{layer, categories, table, gates, map};                    \
        gradroute::weigh_vectors<T>(layer, g, offsets, routing, column, to);                       \
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
    const gradroute::Routing routing{layer, categories, table, gates, map};
    const uint64_t n = blockIdx.x;
    gradroute::sketch_column(routing, n, g + n * layer.outputs, column, factor,
                             sketch + n * layer.sketch_outputs * layer.sketch_inputs);
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
