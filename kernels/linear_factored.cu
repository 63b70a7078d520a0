// Weight gradient of a linear layer, factored: one product over the rows of all samples. Rows of several
// samples share a stage; only where another weight begins is what has arisen weighed and added to the
// running total. A sample of weight 0 is left out: its rows are not read.
//
// Grid: [tiles of inputs, tiles of outputs, parts of the rows].
#include "formed.cuh"
#include "gather.cuh"

namespace gradroute {

template <typename T>
__device__ inline void factored(const GradrouteLayer &layer, const T *x, const T *dy,
                                const uint64_t *offsets, const Routing &routing,
                                const FormedOutputs &out) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileShared shared;
    __shared__ Gathering gathering;
    __shared__ RowList<T> lists[LISTS];
    constexpr int BYTES = STAGE_BYTES<T, Upright>;
    const Tile tile{blockIdx.y * TILE, blockIdx.x * TILE, 0, layer.outputs};
    const Columns x_columns{tile.i, 0, layer.inputs, layer.inputs};
    const Columns dy_columns{tile.o, 0, layer.outputs, layer.outputs};
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    Formed<T> block{layer, routing, out, tile, shared, stages + STAGES * BYTES};
    block.prepare();
    const auto needed = [&](uint32_t n, float &weight, uint64_t &key) {
        const bool matters = block.needs(n, weight);
        key = __float_as_uint(weight);
        if (!block.uniform) {
            key = uint64_t(routing.categories[n]) << 32 | __float_as_uint(routing.gate(n));
        }
        return matters;
    };

    Accumulator acc = {}, total;
#pragma unroll
    for (int at = 0; at < 64; ++at) {
        (&total[0][0][0])[at] = NOTHING;
    }
    const uint64_t all = (layer.rows + DEPTH<T> - 1) / DEPTH<T>;
    const uint64_t from = all * blockIdx.z / gridDim.z * DEPTH<T>;
    const uint64_t to = all * (blockIdx.z + 1) / gridDim.z * DEPTH<T>;
    Gatherer<T> gatherer(gathering, offsets, layer.samples, from, min(to, layer.rows));
    // The first warp is one stage ahead of those that bring the rows.
    const bool gathers = block.place.warp == 0;
    if (gathers) {
        gatherer.list(lists[0], needed);
        gatherer.list(lists[1], needed);
    }
    __syncthreads();
    uint32_t fetched = 0, turn = 0;
    pipeline<T, Upright>(
        acc, stages, block.place,
        [&](int slot) {
            const RowList<T> &list = lists[fetched % LISTS];
            if (list.n != NOBODY) {
                char *to = stages + slot * BYTES;
                const auto row_of = [&](int down) { return list.rows[down]; };
                load_rows_upright(to, dy, layer.rows, dy_columns, aligned, row_of);
                load_rows_upright(to + Upright<T>::BYTES, x, layer.rows, x_columns, aligned, row_of);
            }
            if (++fetched >= 2 && gathers) {
                gatherer.list(lists[fetched % LISTS], needed);
            }
        },
        [&](int) { return lists[turn % LISTS].n != NOBODY; },
        [&](int) { return lists[turn % LISTS].count <= DEPTH<T> / 2; },
        [&](int, const char *) {
            const RowList<T> &list = lists[turn % LISTS], &next = lists[++turn % LISTS];
            if (next.n != NOBODY && next.key == list.key) {
                return;
            }
            if (!block.uniform) {
                block.weigh_tile(acc, list.n);
            }
            block.add(acc, total, block.uniform ? list.weight : 1.0f);
        });
    block.template finish<T>(total, stages);
}

}  // namespace gradroute

#define LINEAR_FACTORED(NAME, T)                                                                   \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *x, const T *dy,                \
             FORMED_ARGUMENTS) {                                                                   \
        using namespace gradroute;                                                                 \
        const Routing routing{layer, categories, table, gates, map};                               \
        const FormedOutputs out FORMED_OUTPUTS;                                                    \
        factored<T>(layer, x, dy, offsets, routing, out);                                          \
    }

LINEAR_FACTORED(linear_factored_wgrad_f32, float)
LINEAR_FACTORED(linear_factored_wgrad_f16, __half)
LINEAR_FACTORED(linear_factored_wgrad_bf16, __nv_bfloat16)
