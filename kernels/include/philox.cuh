// Philox4x32-10 and the sketches' random structure, bit for bit that of src/projection.
#pragma once

#include <stdint.h>

#include "gradroute.h"

namespace gradroute {

__device__ inline uint4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t k0,
                                   uint32_t k1) {
    uint32_t c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Sides of the gradient matrix that a sign matrix multiplies: the third counter word.
constexpr uint32_t SIDE_OUTPUTS = 1;
constexpr uint32_t SIDE_INPUTS = 2;

// Whether a side has no more rows than columns, so that they are orthonormal. Inputs leave room for a bias.
__device__ inline bool fits(const GradrouteLayer &layer, uint32_t side) {
    const uint32_t k = side == SIDE_OUTPUTS ? layer.sketch_outputs : layer.sketch_inputs;
    const uint32_t rows = side == SIDE_OUTPUTS ? layer.outputs : layer.inputs + 1;
    return rows <= k && k <= 32 && (k & (k - 1)) == 0;
}

// A row below 32 of the Walsh-Hadamard matrix: bits that row and column share, modulo 2.
__device__ inline uint32_t walsh(uint32_t row) {
    uint32_t bits = (0u - (row & 1)) & 0xAAAAAAAAu;
    bits ^= (0u - (row >> 1 & 1)) & 0xCCCCCCCCu;
    bits ^= (0u - (row >> 2 & 1)) & 0xF0F0F0F0u;
    bits ^= (0u - (row >> 3 & 1)) & 0xFF00FF00u;
    return bits ^ ((0u - (row >> 4 & 1)) & 0xFFFF0000u);
}

// Signs of columns 32 · word .. of a row of P_o or P_i that has more columns than 32; a set bit is negative.
__device__ inline uint32_t sign_word(const GradrouteLayer &layer, uint32_t side, uint32_t row,
                                     uint32_t word) {
    const uint4 words = philox4x32(row, word / 4, side, layer.seed, layer.layer);
    const uint32_t low = word & 1 ? words.y : words.x;
    const uint32_t high = word & 1 ? words.w : words.z;
    return word & 2 ? high : low;
}

// Signs of a row's first 32 columns, however many there are.
__device__ inline uint32_t first_sign_word(const GradrouteLayer &layer, uint32_t side, uint32_t row) {
    const bool fitting = fits(layer, side);
    const uint4 words = philox4x32(fitting ? 0 : row, 0, side, layer.seed, layer.layer);
    return fitting ? words.x ^ walsh(row) ^ (0u - (words.y >> row % 32 & 1)) : words.x;
}

// Signs and buckets of one 8 × 8 block of the gradient matrix.
struct MicroBlock {
    uint32_t signs_low, signs_high, base, flip;

    __device__ uint32_t sign(uint32_t e) const {
        return ((e & 32 ? signs_high : signs_low) >> (e & 31) & 1) << 31;
    }
    // Buckets are a multiple of 64 and base is below them, so one subtraction is enough.
    __device__ uint32_t bucket(uint32_t e, uint32_t buckets) const {
        const uint32_t at = base + (e ^ flip);
        return at < buckets ? at : at - buckets;
    }
};

__device__ inline MicroBlock micro_block(uint32_t seed, uint32_t layer, uint32_t block_o,
                                         uint32_t block_i, uint32_t buckets) {
    const uint4 words = philox4x32(block_o, block_i, 0, seed, layer);
    return {words.x, words.y, 2 * __umulhi(words.z, buckets / 2), words.w % 64};
}

}  // namespace gradroute
