// Weight gradient of a linear layer, formed: each sample's gradient arises tile by tile in the
// accumulators, is measured, sketched and weighted there, and is added to the running total.
//
// Grid: [tiles of inputs, tiles of outputs, parts of the samples].
#include "flush.cuh"

namespace gradroute {

// The next rows to take: those of the samples that matter here, in order.
template <int ROWS>
struct Cursor {
    uint32_t n, last;
    uint64_t row, end;

    __device__ bool valid() const { return n < last; }
    __device__ bool finishes() const { return row + ROWS >= end; }
    template <typename Needed>
    __device__ void settle(const uint64_t *offsets, const Needed &needed) {
        for (; n < last; ++n) {
            row = offsets[n];
            end = offsets[n + 1];
            if (row < end && needed(n)) {
                return;
            }
        }
    }
    template <typename Needed>
    __device__ void advance(const uint64_t *offsets, const Needed &needed) {
        if (finishes()) {
            ++n;
            settle(offsets, needed);
        } else {
            row += ROWS;
        }
    }
};

template <typename T>
__device__ inline void linear_wgrad(const GradrouteLayer &layer, const T *x, const T *dy,
                                    const uint64_t *offsets, const Routing &routing, void *dw,
                                    float *totals, float *squares, float *sketches,
                                    float *stage_memory) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileShared shared;
    const Place place;
    const uint32_t i = blockIdx.x * TILE, o = blockIdx.y * TILE;
    const uint32_t tile = blockIdx.y * gridDim.x + blockIdx.x, tiles = gridDim.x * gridDim.y;
    const bool norms = layer.flags & GRADROUTE_NORMS;
    const bool records = norms || layer.sketch != GRADROUTE_SKETCH_NONE;
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    const bool count = layer.sketch == GRADROUTE_SKETCH_COUNT;

    Stage stage{stage_memory, count ? layer.sketch_inputs
                                    : layer.sketch_outputs * layer.sketch_inputs};
    if (layer.flags & GRADROUTE_STAGE_SHARED) {
        const int before = STAGES * STAGE_BYTES + (count ? PLACES_BYTES : 0);
        stage.numbers = reinterpret_cast<float *>(stages + before);
    } else {
        const uint64_t block = uint64_t(blockIdx.z) * tiles + tile;
        stage.numbers += block * WARPS * stage.length;
    }

    bool same = true;
    if (threadIdx.x < TILE) {
        const int at = threadIdx.x;
        shared.output_span[at] = routing.output_span(min(o + at, layer.outputs - 1));
        shared.input_span[at] = routing.input_span(min(i + at, layer.inputs - 1));
        shared.output_signs[at] = sign_word(layer.seed, layer.layer, SIDE_OUTPUTS, o + at, 0);
        shared.input_signs[at] = sign_word(layer.seed, layer.layer, SIDE_INPUTS, i + at, 0);
        same = shared.output_span[at] == routing.output_span(o)
            && shared.input_span[at] == routing.input_span(i);
    }
    uint32_t *places = reinterpret_cast<uint32_t *>(stages + STAGES * STAGE_BYTES);
    if (count) {
        draw_places(places, layer, o, i, place);
        for (uint32_t k = threadIdx.x; k < WARPS * stage.length; k += THREADS) {
            stage.numbers[k] = 0.0f;
        }
    }
    // Whether one region holds the whole tile.
    const bool uniform = __syncthreads_and(same);
    const uint32_t region = routing.region(shared.output_span[0], shared.input_span[0]);

    const auto needed = [&](uint32_t n) {
        return records || (uniform ? routing.weight(n, region) != 0.0f : !routing.away(n));
    };
    Accumulator acc = {}, total;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        (&total[0][0][0])[at] = NOTHING;
    }

    const auto flush = [&](uint32_t n) {
        if (norms) {
            float sum = 0.0f;
#pragma unroll
            for (int at = 0; at < 64; ++at) {
                const float value = (&acc[0][0][0])[at];
                sum += value * value;
            }
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
                sum += __shfl_xor_sync(0xffffffffu, sum, step);
            }
            if (place.lane == 0) {
                squares[(uint64_t(n) * tiles + tile) * WARPS + place.warp] = sum;
            }
        }
        const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
        const auto weigh_tile = [&](const auto &use) {
            if (uniform) {
                const float weight = routing.weight(n, region);
#pragma unroll
                for (int at = 0; at < 64; ++at) {
                    use((&acc[0][0][0])[at], (&total[0][0][0])[at], weight);
                }
                return;
            }
#pragma unroll
            for (int at = 0; at < 64; ++at) {
                const int mt = at / 16, nt = at / 4 % 4, e = at % 4;
                const int row = place.row + 16 * mt + e / 2 * 8 + place.g;
                const int column = place.column + 8 * nt + 2 * place.t + e % 2;
                const uint32_t r =
                    routing.region(shared.output_span[row], shared.input_span[column]);
                const float weight = r < REGIONS ? shared.weights[r] : routing.weight(n, r);
                use(acc[mt][nt][e], total[mt][nt][e], weight);
            }
        };
        if (!uniform) {
            __syncthreads();
            if (threadIdx.x < min(layer.regions, REGIONS)) {
                shared.weights[threadIdx.x] = routing.weight(n, threadIdx.x);
            }
            __syncthreads();
        }
        if (routed) {
            weigh_tile([](float &g, float &, float weight) { g = weigh(weight, g); });
        }
        if (layer.sketch != GRADROUTE_SKETCH_NONE) {
            if (count) {
                count_tile(acc, places, stage.of(place.warp), place);
            } else {
                two_sided(acc, layer, o, i, shared, stage.of(place.warp), place);
            }
            __syncthreads();
            for (uint32_t k = threadIdx.x; k < stage.length; k += THREADS) {
                float sum = 0.0f;
#pragma unroll
                for (int warp = 0; warp < WARPS; ++warp) {
                    sum += stage.of(warp)[k];
                    if (count) {
                        stage.of(warp)[k] = 0.0f;
                    }
                }
                sketches[(uint64_t(n) * tiles + tile) * stage.length + k] = sum;
            }
        }
        if (layer.flags & GRADROUTE_DW) {
            weigh_tile([&](float g, float &sum, float weight) {
                if (weight != 0.0f) {
                    sum += routed ? g : weight * g;
                }
            });
        }
#pragma unroll
        for (int at = 0; at < 64; ++at) {
            (&acc[0][0][0])[at] = 0.0f;
        }
    };

    const uint64_t samples = layer.samples;
    const uint32_t first = uint32_t(samples * blockIdx.z / gridDim.z);
    const uint32_t last = uint32_t(samples * (blockIdx.z + 1) / gridDim.z);
    Cursor<DEPTH<T>> load{first, last, 0, 0};
    load.settle(offsets, needed);
    Cursor<DEPTH<T>> compute = load;
    const auto fetch = [&](int slot) {
        if (load.valid()) {
            char *to = stages + slot * STAGE_BYTES;
            load_rows(to, dy, load.row, load.end, o, layer.outputs, aligned);
            load_rows(to + MATRIX_BYTES, x, load.row, load.end, i, layer.inputs, aligned);
            load.advance(offsets, needed);
        }
        commit_copies();
    };
    for (int slot = 0; slot < STAGES - 1; ++slot) {
        fetch(slot);
    }
    for (int slot = 0; compute.valid(); slot = slot + 1 < STAGES ? slot + 1 : 0) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(slot == 0 ? STAGES - 1 : slot - 1);
        const char *from = stages + slot * STAGE_BYTES;
        multiply_stage<T>(acc, from, from + MATRIX_BYTES, place);
        if (compute.finishes()) {
            flush(compute.n);
        }
        compute.advance(offsets, needed);
    }
    await_copies<0>();

    if (!(layer.flags & GRADROUTE_DW)) {
        return;
    }
    const bool accumulate = layer.flags & GRADROUTE_ACCUMULATE;
    const bool native = layer.flags & GRADROUTE_NATIVE;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        const int mt = at / 16, nt = at / 4 % 4, e = at % 4;
        const uint32_t row = o + place.row + 16 * mt + e / 2 * 8 + place.g;
        const uint32_t column = i + place.column + 8 * nt + 2 * place.t + e % 2;
        if (row >= layer.outputs || column >= layer.inputs) {
            continue;
        }
        const uint64_t element = uint64_t(row) * layer.inputs + column;
        const float sum = total[mt][nt][e];
        if (gridDim.z > 1) {
            const uint64_t weights = uint64_t(layer.outputs) * layer.inputs;
            totals[blockIdx.z * weights + element] = sum;
        } else if (native) {
            deliver(static_cast<T *>(dw) + element, sum, accumulate);
        } else {
            deliver(static_cast<float *>(dw) + element, sum, accumulate);
        }
    }
}

}  // namespace gradroute

#define LINEAR_WGRAD(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *x, const T *dy,                \
             const uint64_t *offsets, const uint32_t *categories, const float *table,              \
             const float *gates, const uint32_t *map, void *dw, float *totals, float *squares,     \
             float *sketches, float *stage) {                                                      \
        const gradroute::Routing routing{layer, categories, table, gates, map};                    \
        gradroute::linear_wgrad(layer, x, dy, offsets, routing, dw, totals, squares, sketches,     \
                                stage);                                                            \
    }

LINEAR_WGRAD(linear_wgrad_f32, float)
LINEAR_WGRAD(linear_wgrad_f16, __half)
LINEAR_WGRAD(linear_wgrad_bf16, __nv_bfloat16)
