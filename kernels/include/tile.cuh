// Tiles of rows in shared memory, brought there asynchronously, and their product.
//
// A stage holds K rows of 128 numbers each of two matrices, A and B; the product is Aᵀ · B,
// 128 × 128, in the accumulators of eight warps, two by four, 64 × 32 each. In a warp's
// accumulator [mt][nt][2 · h + j] stands element (16 · mt + 8 · h + lane / 4,
// 8 · nt + 2 · (lane % 4) + j).
#pragma once

#include "gradroute.h"
#include "matrix.cuh"

namespace gradroute {

constexpr int TILE = GRADROUTE_TILE;
constexpr int THREADS = GRADROUTE_THREADS;
constexpr int WARPS = GRADROUTE_WARPS;
constexpr int STAGES = 3;

using Accumulator = float[4][4][4];

// Numbers in 16 bytes, rows of a stage, bytes of one matrix of a stage.
template <typename T>
constexpr int WIDE = 16 / sizeof(T);
template <typename T>
constexpr int DEPTH = 64 / sizeof(T);
constexpr int MATRIX_BYTES = 64 * TILE;
constexpr int STAGE_BYTES = 2 * MATRIX_BYTES;

// Where a warp and a lane stand.
struct Place {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // First row and column of the warp, row and column of the lane in an 8 × 8 block.
    int row = warp / 4 * 64, column = warp % 4 * 32;
    int g = lane / 4, t = lane % 4;
};

// Offset of 16 bytes in a matrix of a stage: rows of 128 numbers, swizzled so that eight rows of one
// column lie in different banks.
template <typename T>
__device__ inline uint32_t piece(int row, int chunk) {
    if constexpr (sizeof(T) == 2) {
        return row * 256 + (chunk ^ (row & 7)) * 16;
    } else {
        return row * 512 + chunk * 16;
    }
}

// Brings rows `first ..` of columns `column .. column + 128` of a matrix [.., width]; what lies behind
// `end` or `width` is zero. `aligned`: rows begin at multiples of 16 bytes.
template <typename T>
__device__ inline void load_rows(char *to, const T *from, uint64_t first, uint64_t end,
                                 uint32_t column, uint32_t width, bool aligned) {
    constexpr int CHUNKS = TILE / WIDE<T>;
#pragma unroll
    for (int turn = 0; turn < MATRIX_BYTES / 16 / THREADS; ++turn) {
        const int at = turn * THREADS + threadIdx.x;
        const int row = at / CHUNKS, chunk = at % CHUNKS;
        const uint32_t here = column + chunk * WIDE<T>;
        char *place = to + piece<T>(row, chunk);
        const bool there = first + row < end && here < width;
        const T *source = from + (there ? (first + row) * width + here : 0);
        if (aligned) {
            copy_async(shared_address(place), source, there);
        } else {
            __align__(16) T numbers[WIDE<T>];
#pragma unroll
            for (int k = 0; k < WIDE<T>; ++k) {
                numbers[k] = there && here + k < width ? source[k] : narrow<T>(0.0f);
            }
            *reinterpret_cast<uint4 *>(place) = reinterpret_cast<const uint4 &>(numbers);
        }
    }
}

// acc += Aᵀ · B of one stage.
template <typename T>
__device__ inline void multiply_stage(Accumulator &acc, const char *a, const char *b,
                                      const Place &place) {
    if constexpr (sizeof(T) == 2) {
        const int row = place.lane % 8, part = place.lane / 8;
        const uint32_t a_rows = shared_address(a), b_rows = shared_address(b);
#pragma unroll
        for (int k = 0; k < DEPTH<T>; k += 16) {
            uint32_t left[4][4], right[2][4];
#pragma unroll
            for (int mt = 0; mt < 4; ++mt) {
                const int chunk = (place.row + 16 * mt) / 8 + (part & 1);
                load_transposed(left[mt], a_rows + piece<T>(k + part / 2 * 8 + row, chunk));
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
        const float *a_rows = reinterpret_cast<const float *>(a) + place.row + place.g;
        const float *b_rows = reinterpret_cast<const float *>(b) + place.column + 2 * place.t;
#pragma unroll 2
        for (int k = 0; k < DEPTH<T>; ++k) {
            float left[8];
            float2 right[4];
#pragma unroll
            for (int m = 0; m < 8; ++m) {
                left[m] = a_rows[k * TILE + 8 * m];
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

}  // namespace gradroute
