// Second stages: partial results added in a fixed order, and the vectors beside a layer's matrix.
#include "vectors.cuh"

namespace gradroute {

// dw (+)= Σ totals[part] of the four elements from `at` on; `wide`: they lie together.
template <typename To>
__device__ inline void reduce_four(const GradrouteLayer &layer, const float *totals, uint32_t parts,
                                   To *dw, uint64_t at, uint64_t weights, bool wide) {
    float sums[4] = {NOTHING, NOTHING, NOTHING, NOTHING};
    for (uint32_t part = 0; part < parts; ++part) {
        const float *from = totals + part * weights + at;
        if (wide) {
            const float4 four = *reinterpret_cast<const float4 *>(from);
            sums[0] += four.x;
            sums[1] += four.y;
            sums[2] += four.z;
            sums[3] += four.w;
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                sums[k] += at + k < weights ? from[k] : NOTHING;
            }
        }
    }
    const bool together = wide && layer.taps == 1
                       && reinterpret_cast<uintptr_t>(dw) % sizeof(Four<To>) == 0;
    if (together) {
        Four<To> *place = reinterpret_cast<Four<To> *>(dw + at);
        Four<To> four;
        if (layer.flags & GRADROUTE_ACCUMULATE) {
            four = *place;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            deliver(four.numbers + k, sums[k], layer.flags & GRADROUTE_ACCUMULATE);
        }
        *place = four;
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (at + k < weights) {
            uint64_t to = at + k;
            if (layer.taps != 1) {
                const uint64_t row = to / layer.inputs;
                to = row * layer.inputs
                   + weight_place(layer, layer.taps, uint32_t(to - row * layer.inputs));
            }
            deliver(dw + to, sums[k], layer.flags & GRADROUTE_ACCUMULATE);
        }
    }
}

// dw (+)= Σ totals[part].
template <typename T>
__device__ inline void reduce_totals(const GradrouteLayer &layer, const float *totals,
                                     uint32_t parts, void *dw) {
    const uint64_t weights = uint64_t(layer.outputs) * layer.inputs;
    const uint64_t step = uint64_t(gridDim.x) * THREADS * 4;
    const bool wide = weights % 4 == 0;
    for (uint64_t at = (uint64_t(blockIdx.x) * THREADS + threadIdx.x) * 4; at < weights; at += step) {
        if (layer.flags & GRADROUTE_NATIVE) {
            reduce_four(layer, totals, parts, static_cast<T *>(dw), at, weights, wide);
        } else {
            reduce_four(layer, totals, parts, static_cast<float *>(dw), at, weights, wide);
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

// Sketches of 128 rows of a sample each, [N, parts, k_o, k_i], from its projected rows: Uᵀ · V, where U
// [tiles of O, R, k_o] and, behind it, V [tiles of I, R, k_i] lack the sum over the tiles. Each side has
// at most 32 columns. With the routed gradient asked for, one weight holds for all of it.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    sketch_rows(const __grid_constant__ GradrouteLayer layer, const uint64_t *offsets,
                const uint32_t *categories, const float *table, const float *gates,
                const float *projected, uint32_t output_tiles, uint32_t input_tiles,
                float *sketches) {
    constexpr uint32_t ROWS = 16, MOST = GRADROUTE_SKETCH_ROWS_MOST;
    __shared__ float u[ROWS * MOST], v[ROWS * MOST];
    const uint32_t n = blockIdx.y, k_o = layer.sketch_outputs, k_i = layer.sketch_inputs;
    const uint64_t first = offsets[n] + blockIdx.x * uint64_t(GRADROUTE_SKETCH_ROWS_PART);
    const uint64_t last = min(first + GRADROUTE_SKETCH_ROWS_PART, offsets[n + 1]);
    const auto gather = [&](float *to, const float *from, uint32_t tiles, uint32_t k, uint64_t row) {
        for (uint32_t at = threadIdx.x; at < ROWS * k; at += GRADROUTE_THREADS) {
            float sum = 0.0f;
            if (row + at / k < last) {
                for (uint32_t tile = 0; tile < tiles; ++tile) {
                    sum += from[(tile * layer.rows + row) * k + at];
                }
            }
            to[at] = sum;
        }
    };
    float sums[4] = {};
    for (uint64_t row = first; row < last; row += ROWS) {
        __syncthreads();
        gather(u, projected, output_tiles, k_o, row);
        gather(v, projected + output_tiles * layer.rows * k_o, input_tiles, k_i, row);
        __syncthreads();
#pragma unroll
        for (int turn = 0; turn < 4; ++turn) {
            const uint32_t e = turn * GRADROUTE_THREADS + threadIdx.x;
            if (e < k_o * k_i) {
                for (uint32_t r = 0; r < ROWS; ++r) {
                    sums[turn] += u[r * k_o + e / k_i] * v[r * k_i + e % k_i];
                }
            }
        }
    }
    const gradroute::Routing routing{layer, categories, table, gates, nullptr};
    const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
    const uint64_t part = uint64_t(n) * gridDim.x + blockIdx.x;
#pragma unroll
    for (int turn = 0; turn < 4; ++turn) {
        const uint32_t e = turn * GRADROUTE_THREADS + threadIdx.x;
        if (e < k_o * k_i) {
            const float sum = sums[turn];
            sketches[part * k_o * k_i + e] =
                routed ? gradroute::weigh(routing.weight(n, 0), sum) : sum;
        }
    }
}

// Squared norms of vectors g [N, outputs], one block a sample; those of samples without rows are not read.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    square_vectors(const __grid_constant__ GradrouteLayer layer, const float *g,
                   const uint64_t *offsets, float *sq_norm) {
    __shared__ float shared[GRADROUTE_WARPS];
    const uint32_t n = blockIdx.x;
    float sum = 0.0f;
    const uint32_t length = offsets[n] < offsets[n + 1] ? layer.outputs : 0;
    for (uint32_t o = threadIdx.x; o < length; o += GRADROUTE_THREADS) {
        const float value = g[uint64_t(n) * layer.outputs + o];
        sum += value * value;
    }
    sum = gradroute::block_sum(sum, shared);
    if (threadIdx.x == 0) {
        sq_norm[n] = layer.sample_scale * layer.sample_scale * sum;
    }
}

// Adds the sketch of column `column` of each sample's gradient matrix, g [N, outputs], to what stands
// there; one block of one warp a sample. Of samples without rows nothing is read or added.
extern "C" __global__ void __launch_bounds__(32)
    sketch_vectors(const __grid_constant__ GradrouteLayer layer, const float *g,
                   const uint64_t *offsets, const uint32_t *categories, const float *table,
                   const float *gates, const uint32_t *map, uint32_t column, float factor,
                   float *sketch) {
    const gradroute::Routing routing{layer, categories, table, gates, map};
    const uint64_t n = blockIdx.x;
    if (offsets[n] == offsets[n + 1]) {
        return;
    }
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
