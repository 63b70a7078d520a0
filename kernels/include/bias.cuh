// The bias' gradient of a sample beside its tiles: the sums of the rows of dY that a stage holds.
#pragma once

#include "tile.cuh"

namespace gradroute {

// Adds the sum of a stage's rows to `sums`, one for each of its columns; rows that are not there are zero.
// All threads of the block; a barrier before anybody else reads the sums.
template <typename T>
__device__ inline void sum_stage(const char *stage, float *sums, const Place &place) {
    if constexpr (sizeof(T) == 2) {
        // Ones · dY by matrix instructions, 16 columns a warp. The sums stand in every row of the product.
        const uint32_t ones = sign_pair<T>(0, 0, 0), left[4] = {ones, ones, ones, ones};
        const uint32_t at = shared_address(stage);
        const int row = place.lane % 8, part = place.lane / 8;
        float product[2][4] = {};
#pragma unroll
        for (int k = 0; k < DEPTH<T>; k += 16) {
            uint32_t right[4];
            load_transposed(
                right, at + Upright<T>::piece(k + (part & 1) * 8 + row, 2 * place.warp + part / 2));
            multiply<T>(product[0], left, right[0], right[1]);
            multiply<T>(product[1], left, right[2], right[3]);
        }
        if (place.g == 0) {
#pragma unroll
            for (int nt = 0; nt < 2; ++nt) {
                float *pair = sums + 16 * place.warp + 8 * nt + 2 * place.t;
                pair[0] += product[nt][0];
                pair[1] += product[nt][1];
            }
        }
    } else if (threadIdx.x < TILE) {
        float sum = 0.0f;
#pragma unroll 4
        for (int k = 0; k < DEPTH<T>; ++k) {
            sum += Upright<T>::number(stage, k, threadIdx.x);
        }
        sums[threadIdx.x] += sum;
    }
}

}  // namespace gradroute
