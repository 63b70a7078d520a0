// Tiles in shared memory, brought there asynchronously, and their products.
//
// A stage holds DEPTH steps of the product of two matrices. The right one always stands upright: a
// row of 128 numbers for each step. The left one stands upright too (Aᵀ · B) or lies across: 128 rows
// of DEPTH numbers (A · B). The product, 128 × 128, arises in the accumulators of eight warps, two by
// four, 64 × 32 each. In a warp's accumulator [mt][nt][2 · h + j] stands element
// (16 · mt + 8 · h + lane / 4, 8 · nt + 2 · (lane % 4) + j).
#pragma once

#include "gradroute.h"
#include "matrix.cuh"

namespace gradroute {

constexpr int TILE = GRADROUTE_TILE;
constexpr int THREADS = GRADROUTE_THREADS;
constexpr int WARPS = GRADROUTE_WARPS;
constexpr int STAGES = 3;

using Accumulator = float[4][4][4];

// Numbers in 16 bytes, steps of a stage.
template <typename T>
constexpr int WIDE = 16 / sizeof(T);
template <typename T>
constexpr int DEPTH = 64 / sizeof(T);
// 16-byte pieces of one matrix that each thread brings.
constexpr int TURNS = 64 * TILE / 16 / THREADS;

// Where a warp and a lane stand.
struct Place {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // First row and column of the warp, row and column of the lane in an 8 × 8 block.
    int row = warp / 4 * 64, column = warp % 4 * 32;
    int g = lane / 4, t = lane % 4;
};

// A matrix with a row for each step, swizzled so that eight rows of one column lie in different banks.
template <typename T>
struct Upright {
    static constexpr int BYTES = 64 * TILE;
    static constexpr int CHUNKS = TILE / WIDE<T>;

    __device__ static uint32_t piece(int row, int chunk) {
        if constexpr (sizeof(T) == 2) {
            return row * 256 + (chunk ^ (row & 7)) * 16;
        } else {
            return row * 512 + chunk * 16;
        }
    }
    // Columns m .. m + 16 of steps k .. k + 16, as a left operand.
    __device__ static void fragment(uint32_t (&to)[4], uint32_t at, int k, int m, const Place &place) {
        const int row = place.lane % 8, part = place.lane / 8;
        load_transposed(to, at + piece(k + part / 2 * 8 + row, m / 8 + (part & 1)));
    }
    __device__ static float number(const char *at, int k, int m) {
        return reinterpret_cast<const float *>(at)[k * TILE + m];
    }
};

// A matrix with a column for each step. In f32 its rows are read one number at a time, so that they are
// kept apart by a shift of banks; else by a swizzle.
template <typename T>
struct Across {
    static constexpr int PITCH = sizeof(T) == 2 ? DEPTH<T> : DEPTH<T> + 4;
    static constexpr int BYTES = TILE * PITCH * sizeof(T);
    static constexpr int CHUNKS = 4;

    __device__ static uint32_t piece(int row, int chunk) {
        if constexpr (sizeof(T) == 2) {
            return row * 64 + (chunk ^ (row >> 1 & 3)) * 16;
        } else {
            return (row * PITCH + chunk * WIDE<T>) * sizeof(T);
        }
    }
    __device__ static void fragment(uint32_t (&to)[4], uint32_t at, int k, int m, const Place &place) {
        const int row = place.lane % 8, part = place.lane / 8;
        load_matrices(to, at + piece(m + (part & 1) * 8 + row, k / 8 + part / 2));
    }
    __device__ static float number(const char *at, int k, int m) {
        return reinterpret_cast<const float *>(at)[m * PITCH + k];
    }
};

template <typename T, template <typename> typename Left>
constexpr int STAGE_BYTES = Left<T>::BYTES + Upright<T>::BYTES;

// Brings one piece: from `source` if it is there, asynchronously if all of it lies together and
// `aligned`, else number by number: number k is `element(k)`.
template <typename T, typename Element>
__device__ inline void copy_piece(char *to, const T *source, bool there, bool aligned,
                                  const Element &element) {
    if (aligned) {
        copy_async(shared_address(to), source, there);
    } else {
        // Rolled: this way is not for speed, and must not cost the other registers.
#pragma unroll 1
        for (int k = 0; k < WIDE<T>; ++k) {
            reinterpret_cast<T *>(to)[k] = element(k);
        }
    }
}

// Columns of a matrix: `first ..`, of which those in `begin .. end` are there, of rows of `pitch` numbers.
struct Columns {
    uint32_t first, begin, end, pitch;
};

// Brings rows of a matrix upright: in each place the row `row_of(down)`, below `end` if there is one; what is
// not there or outside the columns is zero.
template <typename T, typename RowOf>
__device__ inline void load_rows_upright(char *to, const T *from, uint64_t end, const Columns &columns,
                                         bool aligned, const RowOf &row_of) {
    constexpr int CHUNKS = Upright<T>::CHUNKS;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int at = turn * THREADS + threadIdx.x;
        const int down = at / CHUNKS, chunk = at % CHUNKS;
        const uint64_t row = row_of(down);
        const uint32_t column = columns.first + chunk * WIDE<T>;
        const bool there = row < end && column >= columns.begin && column < columns.end;
        const T *source = from + (there ? row * columns.pitch + column : 0);
        copy_piece(to + Upright<T>::piece(down, chunk), source, there, aligned, [&](int k) {
            const bool inside = row < end && column + k >= columns.begin && column + k < columns.end;
            return inside ? from[row * columns.pitch + column + k] : narrow<T>(0.0f);
        });
    }
}

// Brings rows `row ..` of a matrix upright; what lies behind `end` or outside the columns is zero.
template <typename T>
__device__ inline void load_upright(char *to, const T *from, uint64_t row, uint64_t end,
                                    const Columns &columns, bool aligned) {
    load_rows_upright(to, from, end, columns, aligned, [&](int down) { return row + down; });
}

// acc += A · B of one stage, or of its first STEPS steps.
template <typename T, template <typename> typename Left, int STEPS = DEPTH<T>>
__device__ inline void multiply_stage(Accumulator &acc, const char *a, const char *b,
                                      const Place &place) {
    if constexpr (sizeof(T) == 2) {
        const int row = place.lane % 8, part = place.lane / 8;
        const uint32_t a_at = shared_address(a), b_at = shared_address(b);
#pragma unroll
        for (int k = 0; k < STEPS; k += 16) {
            uint32_t left[4][4], right[2][4];
#pragma unroll
            for (int mt = 0; mt < 4; ++mt) {
                Left<T>::fragment(left[mt], a_at, k, place.row + 16 * mt, place);
            }
#pragma unroll
            for (int nt = 0; nt < 2; ++nt) {
                const int chunk = (place.column + 16 * nt) / 8 + part / 2;
                load_transposed(right[nt], b_at + Upright<T>::piece(k + (part & 1) * 8 + row, chunk));
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
        const float *b_rows = reinterpret_cast<const float *>(b) + place.column + 2 * place.t;
#pragma unroll 2
        for (int k = 0; k < STEPS; ++k) {
            float left[8];
            float2 right[4];
#pragma unroll
            for (int m = 0; m < 8; ++m) {
                left[m] = Left<T>::number(a, k, place.row + place.g + 8 * m);
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

// Hands the finished tile to `use`, four neighbours of a row at a time: row and column in the tile, and
// the numbers. They go through shared memory, 64 rows at a time, so that a warp's stores lie together
// and are written once. All threads of the block, when nothing needs the stages any more.
template <typename Use>
__device__ inline void drain(const Accumulator &acc, char *stages, const Place &place, const Use &use) {
    // Rows a little apart, so that what the lanes write lies in different banks.
    constexpr int PITCH = TILE + 8;
    float *half = reinterpret_cast<float *>(stages);
#pragma unroll 1
    for (int first = 0; first < TILE; first += 64) {
        __syncthreads();
        if (place.row == first) {
#pragma unroll
            for (int m = 0; m < 8; ++m) {
#pragma unroll
                for (int nt = 0; nt < 4; ++nt) {
                    const float *pair = &acc[m / 2][nt][m % 2 * 2];
                    const int at = (8 * m + place.g) * PITCH + place.column + 8 * nt + 2 * place.t;
                    *reinterpret_cast<float2 *>(half + at) = make_float2(pair[0], pair[1]);
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int row = place.warp; row < 64; row += WARPS) {
            use(first + row, 4 * place.lane,
                *reinterpret_cast<const float4 *>(half + row * PITCH + 4 * place.lane));
        }
    }
}

// The pipeline: while one stage is multiplied, the next two are on their way. `fetch(slot)` queues the
// copies of the next stage, if there is one, `more(slot)` says whether this one is to be multiplied,
// `few(slot)` whether the first half of its steps is all there is, and `after(slot, stage)` follows its
// product. Between a fetch and what follows lies a barrier.
template <typename T, template <typename> typename Left, typename Fetch, typename More, typename Few,
          typename After>
__device__ inline void pipeline(Accumulator &acc, const char *stages, const Place &place,
                                const Fetch &fetch, const More &more, const Few &few,
                                const After &after) {
    for (int slot = 0; slot < STAGES - 1; ++slot) {
        fetch(slot);
        commit_copies();
    }
    __syncthreads();
    for (int slot = 0; more(slot); slot = slot + 1 < STAGES ? slot + 1 : 0) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(slot == 0 ? STAGES - 1 : slot - 1);
        commit_copies();
        const char *from = stages + slot * STAGE_BYTES<T, Left>;
        if (few(slot)) {
            multiply_stage<T, Left, DEPTH<T> / 2>(acc, from, from + Left<T>::BYTES, place);
        } else {
            multiply_stage<T, Left>(acc, from, from + Left<T>::BYTES, place);
        }
        after(slot, from);
    }
    await_copies<0>();
}

// The same, where all stages are multiplied whole.
template <typename T, template <typename> typename Left, typename Fetch, typename More, typename After>
__device__ inline void pipeline(Accumulator &acc, const char *stages, const Place &place,
                                const Fetch &fetch, const More &more, const After &after) {
    pipeline<T, Left>(acc, stages, place, fetch, more, [](int) { return false; }, after);
}

}  // namespace gradroute
