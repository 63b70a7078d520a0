// Number formats of activations and parameters.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace gradroute {

template <typename T>
__device__ inline float widen(T value) {
    if constexpr (sizeof(T) == 4) {
        return value;
    } else {
        return static_cast<float>(value);
    }
}

// Rounds to nearest, ties to even.
template <typename T>
__device__ inline T narrow(float value);
template <>
__device__ inline float narrow<float>(float value) {
    return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Four neighbours, read and written at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T numbers[4];
};

// Nothing yet: adding it changes no bit of any number, not even the sign of a zero.
constexpr float NOTHING = -0.0f;

// Writes or adds a finished sum, which began as NOTHING.
template <typename T>
__device__ inline void deliver(T *to, float sum, bool accumulate) {
    *to = narrow<T>(accumulate ? widen(*to) + sum : sum + 0.0f);
}

// Contribution of a value under a weight; a weight of 0 selects, whatever the value.
__device__ inline float weigh(float weight, float value) {
    return weight == 0.0f ? 0.0f : weight * value;
}

}  // namespace gradroute
