// Weight gradient of a convolution, formed: patches are gathered from the image on their way to
// shared memory, and exist nowhere else. Columns count channels last, so that 16 bytes of them are 16
// bytes of one pixel.
//
// Grid: [tiles of inputs, groups × their tiles of outputs, parts of the samples].
#include "conv.cuh"
#include "formed.cuh"

namespace gradroute {

template <typename T>
struct ConvOperands {
    const GradrouteConv &conv;
    // [N, height, width, groups · features], from this group's first channel; [N · positions, outputs].
    const T *x, *dy;
    Columns dy_columns;
    uint32_t features, inputs, channels;
    bool aligned;
    // The piece that this thread brings of each row: its column, the channel and tap of its first number.
    uint32_t column, channel;
    Tap tap;

    __device__ ConvOperands(const GradrouteLayer &layer, const GradrouteConv &conv, const Tile &tile,
                            const T *x, const T *dy, uint32_t group)
        : conv(conv),
          x(x + group * layer.features),
          dy(dy),
          dy_columns{tile.o, tile.o_begin, tile.o_end, layer.outputs},
          features(layer.features),
          inputs(layer.inputs),
          channels(conv.groups * layer.features),
          aligned(layer.flags & GRADROUTE_ALIGNED),
          column(tile.i + threadIdx.x % Upright<T>::CHUNKS * WIDE<T>),
          channel(column % layer.features),
          tap(Tap::of(conv, column / layer.features)) {}

    __device__ void load(char *to, uint32_t n, uint64_t row, uint64_t end) const {
        load_upright(to, dy, row, end, dy_columns, aligned);
        constexpr int CHUNKS = Upright<T>::CHUNKS;
        const uint64_t first = uint64_t(n) * conv.positions;
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int down = (turn * THREADS + threadIdx.x) / CHUNKS;
            const uint32_t position = uint32_t(row + down - first);
            uint64_t pixel = 0;
            const bool there = row + down < end && column < inputs
                            && pixel_of(conv, n, position, tap, pixel);
            const T *source = x + (there ? pixel * channels + channel : 0);
            char *place = to + Upright<T>::BYTES + Upright<T>::piece(down, threadIdx.x % CHUNKS);
            copy_piece(place, source, there, aligned, [&](int k) {
                const uint32_t at = column + k;
                uint64_t of = 0;
                const bool inside = row + down < end && at < inputs
                    && pixel_of(conv, n, position, Tap::of(conv, at / features), of);
                return inside ? x[of * channels + at % features] : narrow<T>(0.0f);
            });
        }
    }
};

}  // namespace gradroute

#define CONV2D_WGRAD(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer,                                         \
             const __grid_constant__ GradrouteConv conv, const T *x, const T *dy,                  \
             FORMED_ARGUMENTS) {                                                                   \
        using namespace gradroute;                                                                 \
        const Routing routing{layer, categories, table, gates, map};                               \
        const uint32_t outputs = layer.outputs / conv.groups;                                      \
        const uint32_t group = blockIdx.y / conv.group_tiles;                                      \
        const uint32_t begin = group * outputs;                                                    \
        /* Tiles begin at whole micro-blocks of the sketch. */                                     \
        const Tile tile{begin / 8 * 8 + blockIdx.y % conv.group_tiles * TILE, blockIdx.x * TILE,   \
                        begin, begin + outputs};                                                   \
        const ConvOperands<T> operands(layer, conv, tile, x, dy, group);                           \
        const FormedOutputs out FORMED_OUTPUTS;                                                    \
        formed<T, T>(layer, tile, operands, offsets, routing, out);                                   \
    }

CONV2D_WGRAD(conv2d_wgrad_f32, float)
CONV2D_WGRAD(conv2d_wgrad_f16, __half)
CONV2D_WGRAD(conv2d_wgrad_bf16, __nv_bfloat16)
