// A LoRA branch: the layers of both factors.
#pragma once

#include "routing.cuh"

namespace gradroute {

// The routing of both factors' gradients.
struct Trained {
    const Routing &a, &b;

    __device__ bool operator()(uint32_t n) const { return of(a, n) || of(b, n); }
    __device__ static bool of(const Routing &routing, uint32_t n) {
        return routing.recorded() || !routing.away(n);
    }
};

}  // namespace gradroute

// The layers of B and A, and how their gradients are routed.
#define LORA_ROUTED                                                                                \
    const __grid_constant__ GradrouteLayer layer, const __grid_constant__ GradrouteLayer of_a,     \
        const uint64_t *offsets, const uint32_t *categories, const float *route,                   \
        const float *gates, const uint32_t *a_categories, const float *a_route, const float *a_gates
