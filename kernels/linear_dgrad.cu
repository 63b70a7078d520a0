// Gradient of a linear layer's input, dY · W, each sample's flow weight applied at the end.
//
// Grid: [tiles of inputs, tiles of rows, parts of the rows beyond 65535 tiles].
#include "routing.cuh"
#include "tile.cuh"

namespace gradroute {

// Numbers between the starts of two rows of dY in shared memory. In f32 rows are read one number at
// a time, so that they are kept apart by a shift of banks; else by a swizzle.
template <typename T>
constexpr int PITCH = sizeof(T) == 2 ? DEPTH<T> : DEPTH<T> + 4;
template <typename T>
constexpr int LEFT_BYTES = TILE * PITCH<T> * sizeof(T);
template <typename T>
constexpr int DGRAD_STAGE_BYTES = LEFT_BYTES<T> + MATRIX_BYTES;

// Offset of 16 bytes of dY's part of a stage: 128 rows of 64 bytes.
template <typename T>
__device__ inline uint32_t left_piece(int row, int chunk) {
    if constexpr (sizeof(T) == 2) {
        return row * 64 + (chunk ^ (row >> 1 & 3)) * 16;
    } else {
        return (row * PITCH<T> + chunk * WIDE<T>) * sizeof(T);
    }
}

// Brings columns `first ..` of 128 rows of dY; zeros behind the last row and the last column.
template <typename T>
__device__ inline void load_left(char *to, const T *dy, uint64_t row, const GradrouteLayer &layer,
                                 uint32_t first, bool aligned) {
#pragma unroll
    for (int turn = 0; turn < MATRIX_BYTES / 16 / THREADS; ++turn) {
        const int at = turn * THREADS + threadIdx.x;
        const int down = at / 4, chunk = at % 4;
        const uint32_t column = first + chunk * WIDE<T>;
        const bool there = row + down < layer.rows && column < layer.outputs;
        const T *source = dy + (there ? (row + down) * layer.outputs + column : 0);
        char *place = to + left_piece<T>(down, chunk);
        if (aligned) {
            copy_async(shared_address(place), source, there);
        } else {
            __align__(16) T numbers[WIDE<T>];
#pragma unroll
            for (int k = 0; k < WIDE<T>; ++k) {
                const bool inside = there && column + k < layer.outputs;
                numbers[k] = inside ? source[k] : narrow<T>(0.0f);
            }
            *reinterpret_cast<uint4 *>(place) = reinterpret_cast<const uint4 &>(numbers);
        }
    }
}

// acc += dY · W of one stage.
template <typename T>
__device__ inline void multiply_left(Accumulator &acc, const char *a, const char *b,
                                     const Place &place) {
    if constexpr (sizeof(T) == 2) {
        const int row = place.lane % 8, part = place.lane / 8;
        const uint32_t a_rows = shared_address(a), b_rows = shared_address(b);
#pragma unroll
        for (int k = 0; k < DEPTH<T>; k += 16) {
            uint32_t left[4][4], right[2][4];
#pragma unroll
            for (int mt = 0; mt < 4; ++mt) {
                const int down = place.row + 16 * mt + (part & 1) * 8 + row;
                load_matrices(left[mt], a_rows + left_piece<T>(down, k / 8 + part / 2));
            }
#pragma unroll
            for (int nt = 0; nt < 2; ++nt) {
                const int chunk = (place.column + 16 * nt) / 8 + part / 2;
                load_transposed(right[nt], b_rows + piece<T>(k + (part & 1) * 8 + row, chunk));
            }
#pragma unroll
            for (int mt = 0; mt < 4; ++mt) {
#pragma unroll
                for (int nt = 0; nt < 4; ++nt) {
                    const uint32_t(&pair)[4] = right[nt / 2];
                    multiply<T>(acc[mt][nt], left[mt], pair[nt % 2 * 2], pair[nt % 2 * 2 + 1]);
                }
            }
        }
    } else {
        const float *a_rows =
            reinterpret_cast<const float *>(a) + (place.row + place.g) * PITCH<T>;
        const float *b_rows = reinterpret_cast<const float *>(b) + place.column + 2 * place.t;
#pragma unroll 2
        for (int k = 0; k < DEPTH<T>; ++k) {
            float left[8];
            float2 right[4];
#pragma unroll
            for (int m = 0; m < 8; ++m) {
                left[m] = a_rows[8 * m * PITCH<T> + k];
            }
#pragma unroll
            for (int nt = 0; nt < 4; ++nt) {
                right[nt] = *reinterpret_cast<const float2 *>(b_rows + k * TILE + 8 * nt);
            }
#pragma unroll
            for (int m = 0; m < 8; ++m) {
#pragma unroll
                for (int nt = 0; nt < 4; ++nt) {
                    float(&to)[4] = acc[m / 2][nt];
                    to[m % 2 * 2] += left[m] * right[nt].x;
                    to[m % 2 * 2 + 1] += left[m] * right[nt].y;
                }
            }
        }
    }
}

template <typename T>
__device__ inline void linear_dgrad(const GradrouteLayer &layer, const T *dy, const T *weight,
                                    const uint64_t *offsets, const Routing &routing, T *dx) {
    extern __shared__ __align__(128) char stages[];
    const Place place;
    const uint32_t i = blockIdx.x * TILE;
    const uint64_t row = (uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * TILE;
    if (row >= layer.rows) {
        return;
    }
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    const uint32_t steps = (layer.outputs + DEPTH<T> - 1) / DEPTH<T>;
    const auto fetch = [&](uint32_t step, int slot) {
        if (step < steps) {
            char *to = stages + slot * DGRAD_STAGE_BYTES<T>;
            load_left(to, dy, row, layer, step * DEPTH<T>, aligned);
            load_rows<T>(to + LEFT_BYTES<T>, weight, step * DEPTH<T>, layer.outputs, i, layer.inputs,
                         aligned);
        }
        commit_copies();
    };
    Accumulator acc = {};
    for (int slot = 0; slot < STAGES - 1; ++slot) {
        fetch(slot, slot);
    }
    int slot = 0;
    for (uint32_t step = 0; step < steps; ++step, slot = slot + 1 < STAGES ? slot + 1 : 0) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1, slot == 0 ? STAGES - 1 : slot - 1);
        const char *from = stages + slot * DGRAD_STAGE_BYTES<T>;
        multiply_left<T>(acc, from, from + LEFT_BYTES<T>, place);
    }
    await_copies<0>();

#pragma unroll
    for (int m = 0; m < 8; ++m) {
        const uint64_t down = row + place.row + 8 * m + place.g;
        if (down >= layer.rows) {
            continue;
        }
        const bool routed = layer.regions != 0;
        const float *flows =
            routed ? routing.table
                    + uint64_t(routing.categories[sample_of(offsets, layer.samples, down)])
                        * layer.regions
                   : nullptr;
#pragma unroll
        for (int at = 0; at < 8; ++at) {
            const uint32_t column = i + place.column + at / 2 * 8 + 2 * place.t + at % 2;
            if (column < layer.inputs) {
                const uint32_t region = routing.flow_region(routing.input_span(column));
                const float flow = routed ? flows[region] : 1.0f;
                const float value = acc[m / 2][at / 2][m % 2 * 2 + at % 2];
                dx[down * layer.inputs + column] = narrow<T>(weigh(flow, value));
            }
        }
    }
}

}  // namespace gradroute

// `table` holds flow weights here.
#define LINEAR_DGRAD(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *dy, const T *weight,           \
             const uint64_t *offsets, const uint32_t *categories, const float *table,              \
             const uint32_t *map, T *dx) {                                                         \
        const gradroute::Routing routing{layer, categories, table, nullptr, map};                  \
        gradroute::linear_dgrad(layer, dy, weight, offsets, routing, dx);                          \
    }

LINEAR_DGRAD(linear_dgrad_f32, float)
LINEAR_DGRAD(linear_dgrad_f16, __half)
LINEAR_DGRAD(linear_dgrad_bf16, __nv_bfloat16)
