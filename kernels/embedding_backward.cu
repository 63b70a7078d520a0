// Backward pass of an embedding: dw [vocabulary, features] from tokens and dY.
//
// The gradient of a sample has one column for each of its tokens, kept where the token first occurs in
// it: g [R, features]. A token that repeats adds up there before anything is squared. One that is not in
// the vocabulary has no gradient: nobody could look at the tokens before without waiting for the device.
#include "vectors.cuh"

namespace gradroute {

// Whether no row from `begin` on before this one has its token.
__device__ inline bool is_first(const uint32_t *tokens, uint64_t begin, uint64_t row) {
    for (uint64_t other = begin; other < row; ++other) {
        if (tokens[other] == tokens[row]) {
            return false;
        }
    }
    return true;
}

// Columns of the gradient; a block takes a row and 256 features.
template <typename T>
__device__ inline void embedding_columns(const GradrouteLayer &layer, const uint32_t *tokens,
                                         const T *dy, const uint64_t *offsets, uint8_t *first,
                                         float *g) {
    const uint64_t row = blockIdx.x;
    const uint32_t f = blockIdx.y * THREADS + threadIdx.x;
    const uint32_t n = sample_of(offsets, layer.samples, row);
    const bool own = tokens[row] < layer.inputs && is_first(tokens, offsets[n], row);
    if (f == 0) {
        first[row] = own;
    }
    if (!own || f >= layer.outputs) {
        return;
    }
    float sum = 0.0f;
    for (uint64_t other = row; other < offsets[n + 1]; ++other) {
        if (tokens[other] == tokens[row]) {
            sum += widen(dy[other * layer.outputs + f]);
        }
    }
    g[row * layer.outputs + f] = sum;
}

// dw of the tokens that occur; the block of a token's first row in the batch writes it.
template <typename T>
__device__ inline void embedding_dw(const GradrouteLayer &layer, const uint32_t *tokens,
                                    const uint64_t *offsets, const uint8_t *first, const float *g,
                                    const Routing &routing, void *dw) {
    const uint64_t row = blockIdx.x;
    const uint32_t f = blockIdx.y * THREADS + threadIdx.x;
    const uint32_t token = tokens[row];
    if (f >= layer.outputs || token >= layer.inputs || !is_first(tokens, 0, row)) {
        return;
    }
    const uint32_t region = routing.column_region(f, token);
    float sum = NOTHING;
    for (uint32_t n = 0; n < layer.samples; ++n) {
        const float weight = routing.weight(n, region);
        for (uint64_t at = offsets[n]; weight != 0.0f && at < offsets[n + 1]; ++at) {
            if (first[at] && tokens[at] == token) {
                sum += weight * g[at * layer.outputs + f];
            }
        }
    }
    const uint64_t element = uint64_t(token) * layer.outputs + f;
    if (layer.flags & GRADROUTE_NATIVE) {
        deliver(static_cast<T *>(dw) + element, sum, layer.flags & GRADROUTE_ACCUMULATE);
    } else {
        deliver(static_cast<float *>(dw) + element, sum, layer.flags & GRADROUTE_ACCUMULATE);
    }
}

}  // namespace gradroute

#define EMBEDDING_BACKWARD(NAME, T)                                                                \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        embedding_columns_##NAME(const __grid_constant__ GradrouteLayer layer,                     \
                                 const uint32_t *tokens, const T *dy, const uint64_t *offsets,     \
                                 uint8_t *first, float *g) {                                       \
        gradroute::embedding_columns(layer, tokens, dy, offsets, first, g);                        \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        embedding_dw_##NAME(const __grid_constant__ GradrouteLayer layer, const uint32_t *tokens,  \
                            const uint64_t *offsets, const uint8_t *first, const float *g,         \
                            const uint32_t *categories, const float *table, const float *gates,    \
                            const uint32_t *map, void *dw) {                                       \
        const gradroute::Routing routing{layer, categories, table, gates, map};                    \
        gradroute::embedding_dw<T>(layer, tokens, offsets, first, g, routing, dw);                 \
    }

EMBEDDING_BACKWARD(f32, float)
EMBEDDING_BACKWARD(f16, __half)
EMBEDDING_BACKWARD(bf16, __nv_bfloat16)

// Squared norms, one block a sample.
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    embedding_squares(const __grid_constant__ GradrouteLayer layer, const uint64_t *offsets,
                      const uint8_t *first, const float *g, float *sq_norm) {
    __shared__ float shared[GRADROUTE_WARPS];
    const uint32_t n = blockIdx.x;
    float sum = 0.0f;
    for (uint64_t row = offsets[n]; row < offsets[n + 1]; ++row) {
        for (uint32_t f = threadIdx.x; f < layer.outputs && first[row]; f += GRADROUTE_THREADS) {
            const float value = g[row * layer.outputs + f];
            sum += value * value;
        }
    }
    sum = gradroute::block_sum(sum, shared);
    if (threadIdx.x == 0) {
        sq_norm[n] = layer.sample_scale * layer.sample_scale * sum;
    }
}

// Adds the sketches to what stands there; one block of one warp a sample.
extern "C" __global__ void __launch_bounds__(32)
    embedding_sketches(const __grid_constant__ GradrouteLayer layer, const uint32_t *tokens,
                       const uint64_t *offsets, const uint8_t *first, const float *g,
                       const uint32_t *categories, const float *table, const float *gates,
                       const uint32_t *map, float factor, float *sketch) {
    const gradroute::Routing routing{layer, categories, table, gates, map};
    const uint64_t n = blockIdx.x;
    for (uint64_t row = offsets[n]; row < offsets[n + 1]; ++row) {
        if (first[row]) {
            gradroute::sketch_column(routing, n, g + row * layer.outputs, tokens[row], factor,
                                     sketch + n * layer.sketch_outputs * layer.sketch_inputs);
            __syncwarp();
        }
    }
}
