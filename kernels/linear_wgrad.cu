// Weight gradient of a linear layer, formed.
#include "formed.cuh"

namespace gradroute {

template <typename T>
struct LinearOperands {
    const T *x, *dy;
    Columns x_columns, dy_columns;
    bool aligned;

    __device__ void load(char *to, uint32_t, uint64_t row, uint64_t end) const {
        load_upright(to, dy, row, end, dy_columns, aligned);
        load_upright(to + Upright<T>::BYTES, x, row, end, x_columns, aligned);
    }
};

}  // namespace gradroute

#define LINEAR_WGRAD(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *x, const T *dy,                \
             FORMED_ARGUMENTS) {                                                                   \
        using namespace gradroute;                                                                 \
        const Routing routing{layer, categories, table, gates, map};                               \
        const Tile tile{blockIdx.y * TILE, blockIdx.x * TILE, 0, layer.outputs};                   \
        const LinearOperands<T> operands{x,                                                        \
                                         dy,                                                       \
                                         {tile.i, 0, layer.inputs, layer.inputs},                  \
                                         {tile.o, 0, layer.outputs, layer.outputs},                \
                                         (layer.flags & GRADROUTE_ALIGNED) != 0};                  \
        const FormedOutputs out FORMED_OUTPUTS;                                                    \
        formed<T, T>(layer, tile, operands, offsets, routing, out);                                   \
    }

LINEAR_WGRAD(linear_wgrad_f32, float)
LINEAR_WGRAD(linear_wgrad_f16, __half)
LINEAR_WGRAD(linear_wgrad_bf16, __nv_bfloat16)
