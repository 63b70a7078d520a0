// Matrix instructions, fragment loads and asynchronous copies of sm_80.
#pragma once

#include <type_traits>

#include "element.cuh"

namespace gradroute {

__device__ inline uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes in the background, or zeros if `there` is false.
__device__ inline void copy_async(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ inline void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// d += a · b, 16 × 8 × 16, in f32.
template <typename T>
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two f32 numbers as two f16 pairs, high parts and what they lack: 24 bits below the largest number
// of the warp, by whose power of two all are scaled first.
struct Split {
    uint32_t high, low;

    __device__ Split(float x, float y, float scale) {
        x *= scale;
        y *= scale;
        const __half2 h = __floats2half2_rn(x, y);
        const float2 back = __half22float2(h);
        const __half2 l = __floats2half2_rn(x - back.x, y - back.y);
        high = reinterpret_cast<const uint32_t &>(h);
        low = reinterpret_cast<const uint32_t &>(l);
    }
};

// Power of two that brings a magnitude to 2^14 .. 2^15.
__device__ inline float power_scale(float magnitude) {
    const int exponent = max(int(__float_as_uint(magnitude) >> 23), 30);
    return __uint_as_float(uint32_t(127 + 14 + 127 - exponent) << 23);
}
// The same of a warp's largest magnitude.
__device__ inline float split_scale(float magnitude) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        magnitude = fmaxf(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, step));
    }
    return power_scale(magnitude);
}
// One over a power of two.
__device__ inline float power_inverse(float power) {
    return __uint_as_float(0x7F000000u - __float_as_uint(power));
}

// ±1 twice: negative where bit `bit` of a row's signs is set.
template <typename T>
__device__ inline uint32_t sign_pair(uint32_t low, uint32_t high, uint32_t bit) {
    constexpr uint32_t ONES = std::is_same_v<T, __half> ? 0x3C003C00u : 0x3F803F80u;
    return ONES | (low >> bit & 1) << 15 | (high >> bit & 1) << 31;
}

}  // namespace gradroute
