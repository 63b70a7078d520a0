// The formed path: a sample's gradient arises tile by tile in the accumulators, is measured,
// sketched and weighted there when its rows are through, and is added to the running total. The bias'
// gradient is the sum of the same rows of dY.
//
// Grid: [tiles of inputs, tiles of outputs, parts of the samples]. `Operands` brings the rows of dY and
// X of a tile to a stage.
#pragma once

#include "bias.cuh"
#include "cursor.cuh"
#include "two_sided.cuh"

namespace gradroute {

// Where a tile stands in the matrix: its first row and column, and the rows of it that are its own.
struct Tile {
    uint32_t o, i, o_begin, o_end;
};

// Where the results go.
struct FormedOutputs {
    void *dw;
    // Running totals [parts, O, I], squares [N, tiles], sketches [N, tiles, K].
    float *totals, *squares, *sketches;
    // Sketches in the making, where shared memory has no room, and U [tiles of O, R, k_o] before
    // V [tiles of I, R, k_i].
    float *stage, *projected;
    // Gradients of the bias [N, O], if they are asked for.
    float *bias;
};

// What the threads of a block share of its work, beside the accumulators.
template <typename T>
struct Formed {
    const GradrouteLayer &layer;
    const Routing &routing;
    const FormedOutputs &out;
    const Tile tile;
    TileShared &shared;
    char *beside;
    const Place place;
    const uint32_t number = blockIdx.y * gridDim.x + blockIdx.x, tiles = gridDim.x * gridDim.y;
    const bool count = layer.sketch == GRADROUTE_SKETCH_COUNT;
    const bool by_rows = layer.flags & GRADROUTE_SKETCH_ROWS;
    const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
    Stage stage;
    // Whether one region holds the whole tile, and which holds its first element.
    bool uniform;
    uint32_t region;

    // All threads of the block.
    __device__ void prepare() {
        stage = {out.stage, layer.sketch_outputs * layer.sketch_inputs};
        if (layer.flags & GRADROUTE_STAGE_SHARED) {
            stage.numbers = reinterpret_cast<float *>(beside + (count ? PLACES_BYTES : SUMS_BYTES));
        } else {
            stage.numbers += (uint64_t(blockIdx.z) * tiles + number) * WARPS * stage.length;
        }
        if (threadIdx.x < TILE) {
            const uint32_t at = threadIdx.x, o = tile.o + at, i = tile.i + at;
            shared.output_span[at] =
                routing.output_span(min(max(o, tile.o_begin), tile.o_end - 1));
            shared.input_span[at] = routing.input_span(min(i, layer.inputs - 1));
            if (layer.sketch == GRADROUTE_SKETCH_TWO_SIDED) {
                shared.output_signs[at] = first_sign_word(layer, SIDE_OUTPUTS, o);
                shared.input_signs[at] = first_sign_word(layer, SIDE_INPUTS, i);
            }
            shared.bias[at] = 0.0f;
        }
        if (count) {
            draw_places(reinterpret_cast<uint32_t *>(beside), layer, tile.o, tile.i, place);
            for (uint32_t k = threadIdx.x; k < WARPS * stage.length; k += THREADS) {
                stage.numbers[k] = 0.0f;
            }
        }
        __syncthreads();
        const uint32_t at = threadIdx.x % TILE;
        uniform = __syncthreads_and(shared.output_span[at] == shared.output_span[0]
                                    && shared.input_span[at] == shared.input_span[0]);
        region = routing.region(shared.output_span[0], shared.input_span[0]);
    }

    // Whether sample n matters, and its weight, if one holds for the tile.
    __device__ bool needs(uint32_t n, float &weight) const {
        weight = uniform ? routing.weight(n, region) : routing.away(n) ? 0.0f : 1.0f;
        return routing.recorded() || weight != 0.0f;
    }

    // All threads of the block.
    __device__ void square(const Accumulator &acc, uint32_t n) const {
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
            shared.squares[place.warp] = sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            float all = 0.0f;
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) {
                all += shared.squares[warp];
            }
            out.squares[uint64_t(n) * tiles + number] = all;
        }
    }

    // Each number of the sample times its weight; what a weight of 0 leaves changes no sum.
    __device__ void weigh_tile(Accumulator &acc, uint32_t n) const {
        // A weight for each pair of spans that meet in the warp's part. Rolled, and by masks: looked up
        // element by element, the weights would cost more registers than there are.
        const uint32_t *output_spans = shared.output_span + place.row;
        const uint32_t *input_spans = shared.input_span + place.column;
        // Columns of one kernel element after the other begin again at the first span.
        const bool sorted = layer.features == layer.inputs;
        const uint32_t left = sorted ? input_spans[0] : 0;
        const uint32_t right = sorted ? input_spans[31] : layer.input_spans - 1;
#pragma unroll 1
        for (uint32_t down = output_spans[0]; down <= output_spans[63]; ++down) {
            const uint32_t rows = spans_equal(output_spans + place.g, 8, 8, down);
#pragma unroll 1
            for (uint32_t across = left; across <= right; ++across) {
                const uint32_t even = spans_equal(input_spans + 2 * place.t, 8, 4, across);
                const uint32_t odd = spans_equal(input_spans + 2 * place.t + 1, 8, 4, across);
                if (!__any_sync(0xffffffffu, rows != 0 && (even | odd) != 0)) {
                    continue;
                }
                const float weight = routing.weight(n, routing.region(down, across));
#pragma unroll
                for (int at = 0; at < 64; ++at) {
                    const int m = at / 8, nt = at / 2 % 4;
                    float &g = acc[m / 2][nt][m % 2 * 2 + at % 2];
                    if (rows >> m & (at % 2 ? odd : even) >> nt & 1) {
                        g = weight == 0.0f ? NOTHING : weight * g;
                    }
                }
            }
        }
    }
    // Which of `count` numbers, `step` apart, are this one.
    __device__ static uint32_t spans_equal(const uint32_t *spans, int step, int count, uint32_t span) {
        uint32_t mask = 0;
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
            mask |= uint32_t(spans[k * step] == span) << k;
        }
        return mask;
    }

    // All threads of the block.
    __device__ void sketch(const Accumulator &acc, uint32_t n) {
        float *own = stage.of(place.warp);
        if (count) {
            count_tile(acc, reinterpret_cast<uint32_t *>(beside), own, place);
        } else {
            two_sided(acc, layer, tile.o, tile.i, shared, reinterpret_cast<float4 *>(beside), own, place);
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
            out.sketches[(uint64_t(n) * tiles + number) * stage.length + k] = sum;
        }
    }

    // Whether this block adds up the rows of sample n for the bias: one block of each row of tiles does.
    __device__ bool sums(uint32_t n) const {
        return layer.flags & GRADROUTE_BIAS && n % gridDim.x == blockIdx.x;
    }
    // The sums of a sample's rows, of which the stages are through.
    __device__ void flush_bias(uint32_t n) const {
        __syncthreads();
        const uint32_t o = tile.o + threadIdx.x;
        if (threadIdx.x < TILE) {
            if (o >= tile.o_begin && o < tile.o_end) {
                out.bias[uint64_t(n) * layer.outputs + o] = shared.bias[threadIdx.x];
            }
            shared.bias[threadIdx.x] = 0.0f;
        }
    }

    // The end of a sample. All threads of the block.
    __device__ void flush(Accumulator &acc, Accumulator &total, const Work &work) {
        if (sums(work.n)) {
            flush_bias(work.n);
        }
        if (layer.flags & GRADROUTE_NORMS) {
            square(acc, work.n);
        }
        const bool sketched = layer.sketch != GRADROUTE_SKETCH_NONE && !by_rows;
        const bool weighed = sketched && routed;
        // Weights come before the sketch or after it; one weight goes into the sum.
#pragma unroll 1
        for (int step = 0; step < 2; ++step) {
            if ((step == 0) != weighed) {
                if (sketched) {
                    sketch(acc, work.n);
                }
            } else if (layer.regions != 0 && (weighed || !uniform)) {
                weigh_tile(acc, work.n);
            }
        }
        add(acc, total, weighed || !uniform ? 1.0f : work.weight);
    }
    // The tile under one weight to the running total; it begins anew.
    __device__ static void add(Accumulator &acc, Accumulator &total, float weight) {
        if (weight != 0.0f) {
#pragma unroll
            for (int at = 0; at < 64; ++at) {
                (&total[0][0][0])[at] += weight * (&acc[0][0][0])[at];
            }
        }
#pragma unroll
        for (int at = 0; at < 64; ++at) {
            (&acc[0][0][0])[at] = 0.0f;
        }
    }

    // U and V of a stage, where it is this block's turn: each is taken once, by one block of a row or
    // column of tiles.
    __device__ void project(const char *from, uint32_t turn, const Work &work) const {
        if constexpr (sizeof(T) == 2) {
            const int quarter = place.warp % 4;
            float *u = out.projected;
            float *v = u + gridDim.y * layer.rows * layer.sketch_outputs;
            if (place.warp < 4 && turn % gridDim.x == blockIdx.x) {
                project_stage<T>(from, shared.output_signs,
                                 u + blockIdx.y * layer.rows * layer.sketch_outputs, work.row, work.end,
                                 layer.sketch_outputs, quarter, place);
            }
            if (place.warp >= 4 && turn % gridDim.y == blockIdx.y) {
                project_stage<T>(from + Upright<T>::BYTES, shared.input_signs,
                                 v + blockIdx.x * layer.rows * layer.sketch_inputs, work.row, work.end,
                                 layer.sketch_inputs, quarter, place);
            }
        }
    }

    // The running total to `to`: raw, [O, I], or finished, in the order of the layer's weight.
    template <typename To>
    __device__ void store(const Accumulator &total, char *stages, To *to, bool raw) const {
        const bool accumulate = !raw && layer.flags & GRADROUTE_ACCUMULATE;
        // Adding the one changes no bit, adding the other makes a sum of nothing +0.
        const float nothing = raw ? NOTHING : 0.0f;
        const uint32_t taps = raw ? 1 : layer.taps;
        const bool wide = taps == 1 && layer.inputs % 4 == 0
                       && reinterpret_cast<uintptr_t>(to) % sizeof(Four<To>) == 0;
        drain(total, stages, place, [&](int down, int right, float4 four) {
            const uint32_t row = tile.o + down, column = tile.i + right;
            if (row < tile.o_begin || row >= tile.o_end || column >= layer.inputs) {
                return;
            }
            const float sums[4] = {four.x, four.y, four.z, four.w};
            To *line = to + uint64_t(row) * layer.inputs;
            if (wide) {
                Four<To> *place = reinterpret_cast<Four<To> *>(line + column);
                Four<To> old;
                if (accumulate) {
                    old = *place;
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float before = accumulate ? widen(old.numbers[k]) : nothing;
                    old.numbers[k] = narrow<To>(before + sums[k]);
                }
                *place = old;
                return;
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (column + k < layer.inputs) {
                    To *at = line + weight_place(layer, taps, column + k);
                    *at = narrow<To>((accumulate ? widen(*at) : nothing) + sums[k]);
                }
            }
        });
    }
    // The running total to where it belongs, if it is asked for; a layer's parameters have the format
    // Native.
    template <typename Native>
    __device__ void finish(const Accumulator &total, char *stages) const {
        if (!(layer.flags & GRADROUTE_DW)) {
            return;
        }
        if (gridDim.z > 1) {
            const uint64_t weights = uint64_t(layer.outputs) * layer.inputs;
            store(total, stages, out.totals + blockIdx.z * weights, true);
        } else if (layer.flags & GRADROUTE_NATIVE) {
            store(total, stages, static_cast<Native *>(out.dw), false);
        } else {
            store(total, stages, static_cast<float *>(out.dw), false);
        }
    }
};

// The kernel's body, of numbers T in the stages and a layer in the format Native;
// `operands.load(to, n, row, end)` brings rows of sample n to a stage.
template <typename T, typename Native, typename Operands>
__device__ inline void formed(const GradrouteLayer &layer, const Tile &tile, const Operands &operands,
                              const uint64_t *offsets, const Routing &routing,
                              const FormedOutputs &out) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileShared shared;
    constexpr int BYTES = STAGE_BYTES<T, Upright>;
    Formed<T> block{layer, routing, out, tile, shared, stages + STAGES * BYTES};
    block.prepare();

    Accumulator acc = {}, total;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        (&total[0][0][0])[at] = NOTHING;
    }
    const auto needed = [&](uint32_t n, float &weight) { return block.needs(n, weight); };
    const uint64_t samples = layer.samples;
    const uint32_t first = uint32_t(samples * blockIdx.z / gridDim.z);
    const uint32_t last = uint32_t(samples * (blockIdx.z + 1) / gridDim.z);
    __shared__ Window windows[WARPS];
    Cursor<DEPTH<T>> cursor(windows[block.place.warp], first, last, offsets, needed);
    // What the stages hold, told by the first thread.
    __shared__ Work works[STAGES];
    uint32_t turn = 0;
    pipeline<T, Upright>(
        acc, stages, block.place,
        [&](int slot) {
            if (threadIdx.x == 0) {
                works[slot] = cursor.now;
            }
            if (cursor.now.n != NOBODY) {
                const Work &now = cursor.now;
                operands.load(stages + slot * BYTES, now.n, now.row, now.end);
                cursor.advance(offsets, needed);
            }
        },
        [&](int slot) { return works[slot].n != NOBODY; },
        [&](int slot) { return works[slot].row + DEPTH<T> / 2 >= works[slot].end; },
        [&](int slot, const char *from) {
            if (block.sums(works[slot].n)) {
                sum_stage<T>(from, shared.bias, block.place);
            }
            if (block.by_rows) {
                block.project(from, turn++, works[slot]);
            }
            if (works[slot].finishes) {
                block.flush(acc, total, works[slot]);
            }
        });

    block.template finish<Native>(total, stages);
}

}  // namespace gradroute

// The arguments of a formed kernel behind its operands, and their use.
#define FORMED_ARGUMENTS                                                                           \
    const uint64_t *offsets, const uint32_t *categories, const float *table, const float *gates,   \
        const uint32_t *map, void *dw, float *totals, float *squares, float *sketches,             \
        float *stage, float *projected, float *bias
#define FORMED_OUTPUTS                                                                             \
    { dw, totals, squares, sketches, stage, projected, bias }
