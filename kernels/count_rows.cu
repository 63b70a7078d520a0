// The count sketch of samples of one row each: an element of a sample's gradient is a product of two numbers,
// which goes to its bucket under its sign, and nowhere else. A warp takes 32 micro-blocks side by side, for two
// samples; its lanes meet the 64 buckets of each in pairs.
//
// Grid: [groups of COLUMNS inputs × parts of the outputs, groups of TOGETHER samples]; no sample has more than one
// row.
#include "vectors.cuh"

namespace gradroute {

constexpr uint32_t COLUMNS = GRADROUTE_THREADS;
// Samples for which a micro-block is drawn.
constexpr uint32_t TOGETHER = 2;
// Buckets behind the last, where the first follow it: a micro-block's 64 lie together.
constexpr uint32_t BEHIND = 64;

// What a lane tells the others of the micro-block that it drew. Where elements of a pair change places, their
// signs have done so.
struct Told {
    uint32_t signs[2];
    // First bucket from bit 11 on, COLUMNS if the pairs' elements change places, and what pairs are shifted by.
    uint32_t place;

    __device__ static uint32_t swapped(uint32_t word, bool swap) {
        return swap ? (word >> 1 & 0x55555555u) | (word & 0x55555555u) << 1 : word;
    }
    __device__ static Told of(const MicroBlock &block) {
        const bool swap = block.flip & 1;
        return {{swapped(block.signs_low, swap), swapped(block.signs_high, swap)},
                block.base << 11 | (swap ? COLUMNS : 0) | (block.flip & 62)};
    }
    __device__ Told by(uint32_t lane) const {
        return {{__shfl_sync(0xffffffffu, signs[0], lane), __shfl_sync(0xffffffffu, signs[1], lane)},
                __shfl_sync(0xffffffffu, place, lane)};
    }
};
static_assert(COLUMNS == 256);

// A row of micro-blocks: the warp's 32, of which `across` are there, with the lane's numbers of dY. The sketches
// lie one after the other.
__device__ inline void count_blocks(const Told &drawn, uint32_t across, const float (&mine)[TOGETHER],
                                    const float *columns, float *sketch, uint32_t length) {
    const uint32_t lane = threadIdx.x % 32;
    columns += 2 * (lane % 4);
#pragma unroll 4
    for (uint32_t from = 0; from < across; ++from) {
        const Told told = drawn.by(from);
        const uint32_t signs = (lane < 16 ? told.signs[0] : told.signs[1]) >> 2 * lane % 32;
        const float *two = columns + (told.place & COLUMNS) + 8 * from;
        float *pair = sketch + (told.place >> 11) + ((told.place & 62) ^ 2 * lane);
#pragma unroll
        for (uint32_t at = 0; at < TOGETHER; ++at) {
            const float2 numbers = *reinterpret_cast<const float2 *>(two + at * 2 * COLUMNS);
            const uint32_t x = __float_as_uint(mine[at] * numbers.x) ^ signs << 31;
            const uint32_t y = __float_as_uint(mine[at] * numbers.y) ^ (signs & 2) << 30;
            float2 *place = reinterpret_cast<float2 *>(pair + at * length);
            const float2 sums = *place;
            *place = make_float2(sums.x + __uint_as_float(x), sums.y + __uint_as_float(y));
        }
        // The next block's lanes meet these buckets in another order.
        __syncwarp();
    }
}

// Sketches [N, blocks of a sample, K], not yet scaled.
template <typename T>
__device__ inline void count_rows(const Routing &routing, const T *x, const T *dy,
                                  const uint64_t *offsets, float *sketches) {
    extern __shared__ __align__(16) float stages[];
    // The block's numbers of X, and the same with neighbours in each other's place.
    __shared__ __align__(16) float columns[TOGETHER][2][COLUMNS];
    const GradrouteLayer &layer = routing.layer;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t buckets = layer.sketch_inputs, length = buckets + BEHIND;
    const uint32_t groups = (layer.inputs + COLUMNS - 1) / COLUMNS;
    const uint32_t group = blockIdx.x % groups, part = blockIdx.x / groups, parts = gridDim.x / groups;
    const uint32_t column = COLUMNS * group + threadIdx.x, n = TOGETHER * blockIdx.y;
    // Where the samples' rows are, if there are such.
    uint64_t rows[TOGETHER];
    bool there[TOGETHER];
#pragma unroll
    for (uint32_t at = 0; at < TOGETHER; ++at) {
        there[at] = n + at < layer.samples && offsets[n + at] < offsets[n + at + 1];
        rows[at] = there[at] ? offsets[n + at] : 0;
        const bool inside = there[at] && column < layer.inputs;
        const float number = inside ? widen(x[rows[at] * layer.inputs + column]) : 0.0f;
        columns[at][0][threadIdx.x] = number;
        columns[at][1][threadIdx.x ^ 1] = number;
    }
    float *own = stages + warp * TOGETHER * length;
    for (uint32_t k = lane; k < TOGETHER * length; k += 32) {
        own[k] = 0.0f;
    }
    __syncthreads();
    const uint32_t across = min(COLUMNS / 8, (layer.inputs - COLUMNS * group + 7) / 8);
    // Four rows of micro-blocks at a time, so that 32 numbers of dY are read together.
    const uint32_t down = (layer.outputs + 31) / 32;
    const uint32_t last = uint64_t(down) * (part + 1) / parts;
    for (uint32_t four = uint64_t(down) * part / parts + warp; four < last; four += WARPS) {
        const uint32_t o = 32 * four + lane;
        float numbers[TOGETHER], mine[TOGETHER];
#pragma unroll
        for (uint32_t at = 0; at < TOGETHER; ++at) {
            const bool inside = there[at] && o < layer.outputs;
            numbers[at] = inside ? widen(dy[rows[at] * layer.outputs + o]) : 0.0f;
        }
#pragma unroll 1
        for (uint32_t one = 0; one < 4; ++one) {
            const MicroBlock drawn = micro_block(layer.seed, layer.layer, 4 * four + one,
                                                 COLUMNS / 8 * group + lane, buckets);
#pragma unroll
            for (uint32_t at = 0; at < TOGETHER; ++at) {
                mine[at] = __shfl_sync(0xffffffffu, numbers[at], 8 * one + lane / 4);
            }
            count_blocks(Told::of(drawn), across, mine, columns[0][0], own, length);
        }
    }
    __syncthreads();
    const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
    for (uint32_t k = threadIdx.x; k < TOGETHER * buckets; k += THREADS) {
        const uint32_t at = k / buckets, bucket = k % buckets;
        if (n + at >= layer.samples) {
            break;
        }
        float sum = 0.0f;
#pragma unroll
        for (int other = 0; other < WARPS; ++other) {
            const float *from = stages + (other * TOGETHER + at) * length + bucket;
            sum += from[0];
            if (bucket < BEHIND) {
                sum += from[buckets];
            }
        }
        sketches[(uint64_t(n + at) * gridDim.x + blockIdx.x) * buckets + bucket] =
            routed ? weigh(routing.weight(n + at, 0), sum) : sum;
    }
}

}  // namespace gradroute

// `table` has one region where the sketch is of the routed gradient.
#define COUNT_ROWS(NAME, T)                                                                        \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *x, const T *dy,                \
             const uint64_t *offsets, const uint32_t *categories, const float *table,              \
             const float *gates, float *sketches) {                                                \
        const gradroute::Routing routing{layer, categories, table, gates, nullptr};                \
        gradroute::count_rows(routing, x, dy, offsets, sketches);                                  \
    }

COUNT_ROWS(count_rows_f32, float)
COUNT_ROWS(count_rows_f16, __half)
COUNT_ROWS(count_rows_bf16, __nv_bfloat16)
