// Gradient of a convolution's input: for each pixel the sum, over the kernel's elements, of dY where
// the pixel is seen times the weight; each sample's flow weight is applied at the end.
//
// Grid: [groups × their tiles of channels, tiles of pixels, parts of the pixels beyond 32768 tiles].
#include "conv.cuh"
#include "flow.cuh"

namespace gradroute {

// The steps of the product: outputs of the group, 64 bytes at a time, under each kernel element and,
// where padding wraps around, each image beside the image.
template <typename T>
struct Walk {
    const GradrouteConv &conv;
    const uint32_t outputs, images, taps;
    // Of each pixel whose pieces this thread brings: sample, row and column; NOWHERE behind the last.
    uint32_t n[TURNS];
    int y[TURNS], x[TURNS];
    // Row of dY that it is seen from now.
    uint64_t from[TURNS];
    bool seen[TURNS];
    uint32_t image = 0, tap = 0, o = 0;
    bool done = false;

    __device__ Walk(const GradrouteLayer &layer, const GradrouteConv &conv, uint64_t row, uint64_t rows)
        : conv(conv),
          outputs(layer.outputs / conv.groups),
          images(conv.circular ? 9 : 1),
          taps(conv.kernel_height * conv.kernel_width) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const uint64_t at = row + (turn * THREADS + threadIdx.x) / Across<T>::CHUNKS;
            n[turn] = uint32_t(at / conv.pixels);
            const uint32_t pixel = uint32_t(at - uint64_t(n[turn]) * conv.pixels);
            y[turn] = int(pixel / conv.width);
            x[turn] = int(pixel - y[turn] * conv.width);
            // A pixel that is not there is seen from nowhere.
            y[turn] = at < rows ? y[turn] : INT32_MIN / 2;
        }
        look();
    }

    // Where the pixels are seen from; goes on to the next image or tap while no pixel of the tile is
    // seen. All threads of the block.
    __device__ void look() {
        while (!done) {
            bool any = false;
            const Tap offset = Tap::of(conv, tap);
            const int up = conv.circular ? (int(image / 3) - 1) * int(conv.height) : 0;
            const int left = conv.circular ? (int(image % 3) - 1) * int(conv.width) : 0;
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                uint32_t row = 0, column = 0;
                seen[turn] = seen_from(y[turn] + up, offset.y, conv.stride_y, conv.out_height, row)
                    && seen_from(x[turn] + left, offset.x, conv.stride_x, conv.out_width.by, column);
                from[turn] = uint64_t(n[turn]) * conv.positions + row * conv.out_width.by + column;
                any |= seen[turn];
            }
            if (__syncthreads_or(any)) {
                return;
            }
            turn_over();
        }
    }
    __device__ void turn_over() {
        o = 0;
        if (++tap == taps) {
            tap = 0;
            done = ++image == images;
        }
    }
    __device__ void advance() {
        o += DEPTH<T>;
        if (o >= outputs) {
            turn_over();
            look();
        }
    }

    // dY's part of the step; `dy` begins at the group's first output, in rows of `pitch` numbers.
    __device__ void load(char *to, const T *dy, uint32_t pitch, bool aligned) const {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int at = turn * THREADS + threadIdx.x;
            const int down = at / Across<T>::CHUNKS, chunk = at % Across<T>::CHUNKS;
            const uint32_t output = o + chunk * WIDE<T>;
            const bool there = seen[turn] && output < outputs;
            const T *source = dy + (there ? from[turn] * pitch + output : 0);
            copy_piece(to + Across<T>::piece(down, chunk), source, there, aligned, [&](int k) {
                return there && output + k < outputs ? source[k] : narrow<T>(0.0f);
            });
        }
    }
};

template <typename T>
__device__ inline void conv2d_dgrad(const GradrouteLayer &layer, const GradrouteConv &conv, const T *dy,
                                    const T *weight, const Routing &routing, T *dx) {
    extern __shared__ __align__(128) char stages[];
    __shared__ bool filled[STAGES];
    const Place place;
    const uint32_t features = layer.features, outputs = layer.outputs / conv.groups;
    const uint32_t group = blockIdx.x / conv.group_tiles;
    const uint32_t first = blockIdx.x % conv.group_tiles * TILE;
    const uint64_t rows = uint64_t(layer.samples) * conv.pixels;
    const uint64_t row = (uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * TILE;
    if (row >= rows) {
        return;
    }
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    Walk<T> walk(layer, conv, row, rows);
    // The weight is [O, taps, features].
    const Columns columns{first, 0, features, walk.taps * features};
    Accumulator acc = {};
    pipeline<T, Across>(
        acc, stages, place,
        [&](int slot) {
            if (threadIdx.x == 0) {
                filled[slot] = !walk.done;
            }
            if (!walk.done) {
                char *to = stages + slot * STAGE_BYTES<T, Across>;
                walk.load(to, dy + group * outputs, layer.outputs, aligned);
                const T *own = weight + (uint64_t(group) * outputs * walk.taps + walk.tap) * features;
                load_upright(to + Across<T>::BYTES, own, walk.o, outputs, columns, aligned);
                walk.advance();
            }
        },
        [&](int slot) { return filled[slot]; }, [](int, const char *) {});
    store_flowed(acc, stages, dx + group * features, conv.groups * features, first, features, 1.0f,
                 routing, place, [&](int down) {
                     const uint64_t at = row + down;
                     return FlowedRow{at < rows, at, uint32_t(at / conv.pixels)};
                 });
}

}  // namespace gradroute

// `table` holds flow weights here.
#define CONV2D_DGRAD(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(const __grid_constant__ GradrouteLayer layer,                                         \
             const __grid_constant__ GradrouteConv conv, const T *dy, const T *weight,             \
             const uint32_t *categories, const float *table, const uint32_t *map, T *dx) {         \
        const gradroute::Routing routing{layer, categories, table, nullptr, map};                  \
        gradroute::conv2d_dgrad(layer, conv, dy, weight, routing, dx);                             \
    }

CONV2D_DGRAD(conv2d_dgrad_f32, float)
CONV2D_DGRAD(conv2d_dgrad_f16, __half)
CONV2D_DGRAD(conv2d_dgrad_bf16, __nv_bfloat16)
