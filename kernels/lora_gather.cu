// LoRA: what lora_factors found of the parts of a sample, put together.
#include "lora.cuh"

// The parts of each sample added up, [N, parts, rank · (inputs + outputs)], as `rank` rows of X and of dY: those
// of A's gradient beside the rows of a unit matrix on the other side, and those of B's likewise. Samples
// without rows have none here either; `starts` [N + 1] are the new offsets.
//
// Grid: [blocks for a sample's numbers, samples].
extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)
    lora_gather(LORA_ROUTED, const float *partials, uint32_t parts, uint64_t chunk, float *x, float *dy,
                float *unit, uint64_t *starts) {
    using namespace gradroute;
    const Routing routes{layer, categories, route, gates, nullptr};
    const Routing a_routes{of_a, a_categories, a_route, a_gates, nullptr};
    const uint32_t n = blockIdx.y, inputs = of_a.inputs, rank = layer.inputs, lane = threadIdx.x % 32;
    uint32_t before = 0;
    for (uint32_t from = 0; from < n; from += 32) {
        const uint32_t m = from + lane;
        before += __popc(__ballot_sync(0xffffffffu, m < n && offsets[m] < offsets[m + 1]));
    }
    const uint64_t count = offsets[n + 1] - offsets[n];
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        starts[n] = uint64_t(before) * rank;
        if (n + 1 == layer.samples) {
            starts[n + 1] = uint64_t(before + (count > 0)) * rank;
        }
    }
    // What no factor is trained by is not read later, either.
    if (count == 0 || !Trained{a_routes, routes}(n)) {
        return;
    }
    const uint32_t used = uint32_t(min(uint64_t(parts), (count + chunk - 1) / chunk));
    const uint64_t of_x = uint64_t(rank) * inputs, of_dy = uint64_t(rank) * layer.outputs;
    const uint64_t own = uint64_t(n) * parts * (of_x + of_dy), step = uint64_t(gridDim.x) * GRADROUTE_THREADS;
    for (uint64_t at = uint64_t(blockIdx.x) * GRADROUTE_THREADS + threadIdx.x; at < of_x + of_dy; at += step) {
        float sum = 0.0f;
        for (uint32_t part = 0; part < used; ++part) {
            sum += partials[own + part * (of_x + of_dy) + at];
        }
        float *to = at < of_x ? x + before * of_x + at : dy + before * of_dy + (at - of_x);
        *to = sum;
    }
    if (blockIdx.x == 0) {
        for (uint32_t at = threadIdx.x; at < rank * rank; at += GRADROUTE_THREADS) {
            unit[uint64_t(before) * rank * rank + at] = at / rank == at % rank ? 1.0f : 0.0f;
        }
    }
}
