// Matrices turned over: channels put last, and back.
//
// Grid: [tiles of columns, tiles of rows, matrices]; blocks of tiles beyond the grid come round again.
#include "gradroute.h"

namespace gradroute {

// to [batch, columns, rows] = from [batch, rows, columns].
template <typename T>
__device__ inline void transpose(const T *from, T *to, uint64_t batch, uint32_t rows,
                                 uint32_t columns) {
    constexpr uint32_t EDGE = 32, HEIGHT = GRADROUTE_THREADS / EDGE;
    // A column more, so that a column's numbers lie in different banks.
    __shared__ T tile[EDGE][EDGE + 1];
    const uint32_t x = threadIdx.x % EDGE, y = threadIdx.x / EDGE;
    const uint32_t column = blockIdx.x * EDGE;
    for (uint64_t matrix = blockIdx.z; matrix < batch; matrix += gridDim.z) {
        const uint64_t base = matrix * rows * columns;
        for (uint32_t row = blockIdx.y * EDGE; row < rows; row += gridDim.y * EDGE) {
            for (uint32_t at = y; at < EDGE; at += HEIGHT) {
                if (row + at < rows && column + x < columns) {
                    tile[at][x] = from[base + uint64_t(row + at) * columns + column + x];
                }
            }
            __syncthreads();
            for (uint32_t at = y; at < EDGE; at += HEIGHT) {
                if (column + at < columns && row + x < rows) {
                    to[base + uint64_t(column + at) * rows + row + x] = tile[x][at];
                }
            }
            __syncthreads();
        }
    }
}

}  // namespace gradroute

#define TRANSPOSE(NAME, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        NAME(const T *from, T *to, uint64_t batch, uint32_t rows, uint32_t columns) {              \
        gradroute::transpose(from, to, batch, rows, columns);                                      \
    }

TRANSPOSE(transpose_f32, uint32_t)
TRANSPOSE(transpose_f16, uint16_t)
TRANSPOSE(transpose_bf16, uint16_t)
