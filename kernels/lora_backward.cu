// LoRA: the weight gradients of both factors, formed in f32, since what passes between the factors is
// f32 whatever the inputs are.
//
// Grid: as formed.cuh says, of the factor's matrix.
#include "formed.cuh"

namespace gradroute {

// Brings rows of a matrix of T upright, as f32.
template <typename T>
__device__ inline void load_widened(char *to, const T *from, uint64_t row, uint64_t end,
                                    const Columns &columns) {
    using Wide = Upright<float>;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int at = turn * THREADS + threadIdx.x;
        const int down = at / Wide::CHUNKS, chunk = at % Wide::CHUNKS;
        const uint32_t column = columns.first + chunk * WIDE<float>;
        float four[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const bool inside = row + down < end && column + k < columns.end;
            four[k] = inside ? widen(from[(row + down) * columns.pitch + column + k]) : 0.0f;
        }
        *reinterpret_cast<float4 *>(to + Wide::piece(down, chunk)) =
            make_float4(four[0], four[1], four[2], four[3]);
    }
}

// Of the first factor dY is f32, the gradient that reaches it; of the second X, what the first made of it; of
// rows that lora_gather made, both.
template <typename T>
struct MixedOperands {
    const void *dy, *x;
    uint32_t wide;
    Columns dy_columns, x_columns;
    bool aligned;

    __device__ void load(char *to, uint32_t, uint64_t row, uint64_t end) const {
        side(to, dy, wide & GRADROUTE_LORA_DY_WIDE, row, end, dy_columns);
        side(to + Upright<float>::BYTES, x, wide & GRADROUTE_LORA_X_WIDE, row, end, x_columns);
    }
    __device__ void side(char *to, const void *from, bool is_wide, uint64_t row, uint64_t end,
                         const Columns &columns) const {
        if (is_wide) {
            load_upright(to, static_cast<const float *>(from), row, end, columns, aligned);
        } else {
            load_widened(to, static_cast<const T *>(from), row, end, columns);
        }
    }
};

template <typename T>
__device__ inline void widen_all(const T *from, float *to, uint64_t length) {
    const uint64_t step = uint64_t(gridDim.x) * THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * THREADS + threadIdx.x; at < length; at += step) {
        to[at] = widen(from[at]);
    }
}

}  // namespace gradroute

#define LORA(FORMAT, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        lora_wgrad_##FORMAT(const __grid_constant__ GradrouteLayer layer, const void *x,           \
                            const void *dy, uint32_t wide, FORMED_ARGUMENTS) {                     \
        using namespace gradroute;                                                                 \
        const Routing routing{layer, categories, table, gates, map};                               \
        const Tile tile{blockIdx.y * TILE, blockIdx.x * TILE, 0, layer.outputs};                   \
        const MixedOperands<T> operands{dy,                                                        \
                                        x,                                                         \
                                        wide,                                                      \
                                        {tile.o, 0, layer.outputs, layer.outputs},                 \
                                        {tile.i, 0, layer.inputs, layer.inputs},                   \
                                        (layer.flags & GRADROUTE_ALIGNED) != 0};                   \
        const FormedOutputs out FORMED_OUTPUTS;                                                    \
        formed<float, T>(layer, tile, operands, offsets, routing, out);                            \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        lora_widen_##FORMAT(const T *from, float *to, uint64_t length) {                           \
        gradroute::widen_all(from, to, length);                                                    \
    }

LORA(f16, __half)
LORA(bf16, __nv_bfloat16)
