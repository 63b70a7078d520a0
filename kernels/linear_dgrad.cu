// Gradient of a linear layer's input, dY · W, each sample's flow weight applied at the end; and what
// passes between LoRA's factors, which is f32 on one side of the product or the other.
//
// Grid: [tiles of inputs, tiles of rows, parts of the rows beyond 32768 tiles].
#include "flow.cuh"

namespace gradroute {

// Brings columns `first ..` of 128 rows of dY; zeros behind the last row and the last column.
template <typename T>
__device__ inline void load_rows(char *to, const T *dy, uint64_t row, const GradrouteLayer &layer,
                                 uint32_t first, bool aligned) {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int at = turn * THREADS + threadIdx.x;
        const int down = at / Across<T>::CHUNKS, chunk = at % Across<T>::CHUNKS;
        const uint32_t column = first + chunk * WIDE<T>;
        const bool there = row + down < layer.rows && column < layer.outputs;
        const T *source = dy + (there ? (row + down) * layer.outputs + column : 0);
        copy_piece(to + Across<T>::piece(down, chunk), source, there, aligned, [&](int k) {
            return there && column + k < layer.outputs ? source[k] : narrow<T>(0.0f);
        });
    }
}

// dx [R, I] = flow · factor · dY [R, O] · weight [O, I].
template <typename T, typename Out>
__device__ inline void linear_dgrad(const GradrouteLayer &layer, const T *dy, const T *weight,
                                    const uint64_t *offsets, const Routing &routing, float factor,
                                    Out *dx) {
    extern __shared__ __align__(128) char stages[];
    const Place place;
    const uint32_t i = blockIdx.x * TILE;
    const uint64_t row = (uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * TILE;
    if (row >= layer.rows) {
        return;
    }
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    const uint32_t steps = (layer.outputs + DEPTH<T> - 1) / DEPTH<T>;
    const Columns columns{i, 0, layer.inputs, layer.inputs};
    uint32_t load = 0, compute = 0;
    Accumulator acc = {};
    pipeline<T, Across>(
        acc, stages, place,
        [&](int slot) {
            if (load < steps) {
                char *to = stages + slot * STAGE_BYTES<T, Across>;
                const uint32_t o = DEPTH<T> * load++;
                load_rows(to, dy, row, layer, o, aligned);
                load_upright(to + Across<T>::BYTES, weight, o, layer.outputs, columns, aligned);
            }
        },
        [&](int) { return compute < steps; }, [&](int, const char *) { ++compute; });
    store_flowed(acc, stages, dx, layer.inputs, i, layer.inputs, factor, routing, place, [&](int down) {
        const uint64_t at = row + down;
        const uint32_t n = at < layer.rows ? sample_of(offsets, layer.samples, at) : 0;
        return FlowedRow{at < layer.rows, at, n};
    });
}

}  // namespace gradroute

// `table` holds flow weights here.
#define LINEAR_DGRAD(NAME, T, Out)                                                                 \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *dy, const T *weight,           \
             const uint64_t *offsets, const uint32_t *categories, const float *table,              \
             const uint32_t *map, float factor, Out *dx) {                                         \
        const gradroute::Routing routing{layer, categories, table, nullptr, map};                  \
        gradroute::linear_dgrad(layer, dy, weight, offsets, routing, factor, dx);                  \
    }

LINEAR_DGRAD(linear_dgrad_f32, float, float)
LINEAR_DGRAD(linear_dgrad_f16, __half, __half)
LINEAR_DGRAD(linear_dgrad_bf16, __nv_bfloat16, __nv_bfloat16)
LINEAR_DGRAD(linear_dgrad_wide_f16, __half, float)
LINEAR_DGRAD(linear_dgrad_wide_bf16, __nv_bfloat16, float)
LINEAR_DGRAD(linear_dgrad_narrow_f16, float, __half)
LINEAR_DGRAD(linear_dgrad_narrow_bf16, float, __nv_bfloat16)
