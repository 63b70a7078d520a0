// LoRA: the gradients of both factors from one read of X and dY.
//
// Of a sample's rows the branch makes H = scale · X · Aᵀ and D = scale · dY · B, [rows, rank], and its gradients
// are Dᵀ · X of A and, transposed, Hᵀ · dY of B: the same on either side, which is why the sides share their
// code. A block takes a part of a sample's rows, 16 at a time. While they stand in shared memory H and D arise,
// the warps sharing the columns, and both gradients grow in the accumulators, 16 columns to a group, the
// groups dealt to the warps in turn. What the parts of a sample found is `rank` rows of X and of dY that have
// the same gradients as all of its rows: lora_gather adds them up, and the kernels of linear layers do the rest.
// Of a sample that trains neither factor, and of which nothing else is asked, only D is made, if it flows on.
//
// Grid of lora_factors: [parts of a sample, samples].
#include "lora.cuh"
#include "tile.cuh"

namespace gradroute {

// Rows of a stage, and groups of columns that a warp holds for 16 rows of the factors.
constexpr int ROWS = 16, GROUPS = GRADROUTE_LORA_GROUPS;

// Numbers of f32 as parts in the format of the rows, whose products are exact.
template <typename T>
constexpr int PARTS = std::is_same_v<T, __half> ? 2 : 3;

// X with A, or dY with Bᵀ.
template <typename T>
struct Side {
    // [R, width], [rank, width].
    const T *rows, *factor;
    uint32_t width;

    __device__ uint32_t groups() const { return (width + 15) / 16; }
    // Bytes of a row in shared memory; apart, so that eight rows of one column lie in different banks.
    __device__ uint32_t pitch() const { return groups() * 32 + 16; }
};

template <typename T>
struct Sides {
    Side<T> x, dy;
};

// Shared memory beside the stages; TILES of 16 rows of the factors.
template <int TILES>
struct Beside {
    // Each warp's share of H and D, in the order of its accumulators: [side][warp][tile][half][lane], of the
    // first and of the second eight rows.
    float2 sums[2][WARPS][TILES][2][2][32];
    // H and D as left operands, in their parts.
    uint32_t operands[2][TILES][3][32][4];
    // What brings a row of a product back to scale, and the flow weights of the factors' rows.
    float back[2][TILES * 16], flow[TILES * 16];
};

// Brings 16 rows of a side; what lies behind `end` or the width is zero.
template <typename T>
__device__ inline void fetch(char *to, const Side<T> &side, uint64_t row, uint64_t end, bool aligned,
                             const Place &place) {
    const uint32_t pieces = 2 * side.groups();
    for (int down = place.warp; down < ROWS; down += WARPS) {
        const uint64_t at = row + down;
        for (uint32_t piece = place.lane; piece < pieces; piece += 32) {
            const uint32_t column = piece * WIDE<T>;
            const bool there = at < end && column < side.width;
            const T *source = side.rows + (there ? at * side.width + column : 0);
            copy_piece(to + down * side.pitch() + piece * 16, source, there, aligned, [&](int k) {
                return there && column + k < side.width ? source[k] : narrow<T>(0.0f);
            });
        }
    }
}

// A pair of neighbours of a factor's row; zeros where there are none.
template <typename T>
__device__ inline uint32_t pair_of(const Side<T> &side, uint32_t rank, uint32_t row, uint32_t column,
                                   bool aligned) {
    if (row >= rank || column >= side.width) {
        return 0;
    }
    const T *at = side.factor + uint64_t(row) * side.width + column;
    if (aligned) {
        return *reinterpret_cast<const uint32_t *>(at);
    }
    const auto *bits = reinterpret_cast<const uint16_t *>(at);
    return bits[0] | (column + 1 < side.width ? uint32_t(bits[1]) << 16 : 0);
}

// The warp's share of factor · rowsᵀ, of the groups of columns that are its own.
template <typename T, int TILES>
__device__ inline void project(const char *stage, const Side<T> &side, uint32_t rank, bool aligned,
                               float2 (&to)[TILES][2][2][32], const Place &place) {
    float product[TILES][2][4] = {};
    const uint32_t lane = place.lane, own = shared_address(stage) + (lane / 16 * 8 + lane % 8) * side.pitch();
    for (uint32_t group = place.warp; group < side.groups(); group += WARPS) {
        uint32_t rows[4];
        load_matrices(rows, own + group * 32 + (lane / 8 & 1) * 16);
        const uint32_t column = group * 16 + 2 * place.t;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const uint32_t row = tile * 16 + place.g;
            const uint32_t left[4] = {pair_of(side, rank, row, column, aligned),
                                      pair_of(side, rank, row + 8, column, aligned),
                                      pair_of(side, rank, row, column + 8, aligned),
                                      pair_of(side, rank, row + 8, column + 8, aligned)};
            multiply<T>(product[tile][0], left, rows[0], rows[1]);
            multiply<T>(product[tile][1], left, rows[2], rows[3]);
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int nt = 0; nt < 2; ++nt) {
                const float *pair = &product[tile][nt][2 * half];
                to[tile][half][nt][lane] = make_float2(pair[0], pair[1]);
            }
        }
    }
}

// Two numbers in parts, each rounded to what the parts before it lack.
template <typename T>
__device__ inline void split(uint32_t (&parts)[PARTS<T>], float x, float y) {
#pragma unroll
    for (int part = 0; part < PARTS<T>; ++part) {
        const T own[2] = {narrow<T>(x), narrow<T>(y)};
        x -= widen(own[0]);
        y -= widen(own[1]);
        parts[part] = reinterpret_cast<const uint32_t &>(own);
    }
}

// H and D of the stage from the warps' shares, as left operands; D under its flow weights, and to `d` if there
// is any. Each warp has eight rows of one of them. Without `trained` there is no H.
template <typename T, int TILES>
__device__ inline void finish(Beside<TILES> &beside, uint32_t rank, float scale, uint64_t row, uint64_t end,
                              float *d, bool trained, const Place &place) {
    const int side = place.warp / (2 * TILES), tile = place.warp / 2 % TILES, half = place.warp % 2;
    if (side > 1 || (side == 0 && !trained)) {
        return;
    }
    const uint32_t lane = place.lane, j = tile * 16 + half * 8 + place.g;
    float numbers[2][2];
#pragma unroll
    for (int nt = 0; nt < 2; ++nt) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            const float2 one = beside.sums[side][warp][tile][half][nt][lane];
            sum.x += one.x;
            sum.y += one.y;
        }
        const float flow = side == 0 ? 1.0f : beside.flow[j];
        numbers[nt][0] = weigh(flow, scale * sum.x);
        numbers[nt][1] = weigh(flow, scale * sum.y);
        const uint64_t at = row + 8 * nt + 2 * place.t;
        if (side == 1 && d != nullptr && j < rank) {
            for (int k = 0; k < 2; ++k) {
                if (at + k < end) {
                    d[(at + k) * rank + j] = numbers[nt][k];
                }
            }
        }
    }
    if constexpr (std::is_same_v<T, __half>) {
        // A power of two brings the largest of the row into what f16 holds.
        float magnitude = 0.0f;
        for (int k = 0; k < 4; ++k) {
            magnitude = fmaxf(magnitude, fabsf(numbers[k / 2][k % 2]));
        }
        magnitude = fmaxf(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, 1));
        magnitude = fmaxf(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, 2));
        const float up = power_scale(magnitude);
        for (int k = 0; k < 4; ++k) {
            numbers[k / 2][k % 2] *= up;
        }
        if (place.t == 0) {
            beside.back[side][j] = power_inverse(up);
        }
    }
#pragma unroll
    for (int nt = 0; nt < 2; ++nt) {
        uint32_t parts[PARTS<T>];
        split<T>(parts, numbers[nt][0], numbers[nt][1]);
#pragma unroll
        for (int part = 0; part < PARTS<T>; ++part) {
            beside.operands[side][tile][part][lane][2 * nt + half] = parts[part];
        }
    }
}

// What a warp holds of the gradients: of each of its groups two times eight columns.
template <int TILES>
using Gradients = float[GROUPS / TILES][TILES][2][4];

// Adds the stage's products to both gradients.
template <typename T, int TILES>
__device__ inline void grow(Gradients<TILES> &acc, const char *stage, const Sides<T> &sides,
                            const Beside<TILES> &beside, const Place &place) {
    const uint32_t first = sides.x.groups(), all = first + sides.dy.groups(), lane = place.lane;
    const uint32_t at = shared_address(stage);
#pragma unroll
    for (int turn = 0; turn < GROUPS / TILES; ++turn) {
        const uint32_t group = turn * WARPS + place.warp;
        if (group >= all) {
            break;
        }
        // The columns of X go with D, those of dY with H.
        const int with = group < first ? 1 : 0;
        const uint32_t pitch = with ? sides.x.pitch() : sides.dy.pitch();
        const uint32_t own = at + (with ? group * 32 : ROWS * sides.x.pitch() + (group - first) * 32);
        uint32_t right[4];
        load_transposed(right, own + (lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 16);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            float product[2][4] = {};
            constexpr bool scaled = std::is_same_v<T, __half>;
            float(&sum)[2][4] = scaled ? product : acc[turn][tile];
#pragma unroll
            for (int part = 0; part < PARTS<T>; ++part) {
                const uint4 four =
                    *reinterpret_cast<const uint4 *>(beside.operands[with][tile][part][lane]);
                const uint32_t left[4] = {four.x, four.y, four.z, four.w};
                multiply<T>(sum[0], left, right[0], right[1]);
                multiply<T>(sum[1], left, right[2], right[3]);
            }
            if constexpr (scaled) {
                const float *back = beside.back[with] + tile * 16 + place.g;
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    acc[turn][tile][k / 4][k % 4] += back[k % 4 / 2 * 8] * product[k / 4][k % 4];
                }
            }
        }
    }
}

// The part's gradients, [rank, inputs] and [rank, outputs].
template <typename T, int TILES>
__device__ inline void store(const Gradients<TILES> &acc, const Sides<T> &sides, uint32_t rank,
                             float *to, const Place &place) {
    const bool paired = (sides.x.width | sides.dy.width) % 2 == 0;
    const uint32_t first = sides.x.groups(), all = first + sides.dy.groups();
#pragma unroll
    for (int turn = 0; turn < GROUPS / TILES; ++turn) {
        const uint32_t group = turn * WARPS + place.warp;
        if (group >= all) {
            break;
        }
        const bool second = group >= first;
        const uint32_t width = second ? sides.dy.width : sides.x.width;
        float *own = to + (second ? uint64_t(rank) * sides.x.width : 0);
#pragma unroll
        for (int at = 0; at < 4 * TILES; ++at) {
            const int tile = at / 4, nt = at / 2 % 2, half = at % 2;
            const uint32_t j = tile * 16 + half * 8 + place.g;
            const uint32_t column = (group - (second ? first : 0)) * 16 + nt * 8 + 2 * place.t;
            if (j >= rank || column >= width) {
                continue;
            }
            const float *pair = &acc[turn][tile][nt][2 * half];
            float *place = own + uint64_t(j) * width + column;
            if (paired) {
                *reinterpret_cast<float2 *>(place) = make_float2(pair[0], pair[1]);
                continue;
            }
            place[0] = pair[0];
            if (column + 1 < width) {
                place[1] = pair[1];
            }
        }
    }
}

// `layer` is that of B, and the routing that of what flows through it. `chunk` rows to a part; two stages, or
// one where shared memory has no room.
template <typename T, int TILES>
__device__ inline void lora_factors(const Routing &routing, const Trained &trains, const Sides<T> &sides,
                                    const uint64_t *offsets, float scale, uint64_t chunk, uint32_t stages,
                                    float *partials, float *d) {
    extern __shared__ __align__(128) char room[];
    __shared__ Beside<TILES> beside;
    const GradrouteLayer &layer = routing.layer;
    const Place place;
    const uint32_t n = blockIdx.y, rank = layer.inputs;
    const uint64_t first = offsets[n] + blockIdx.x * chunk, end = min(first + chunk, offsets[n + 1]);
    const bool trained = trains(n);
    if (first >= end || (!trained && d == nullptr)) {
        return;
    }
    const bool aligned = layer.flags & GRADROUTE_ALIGNED;
    const uint32_t bytes = ROWS * (sides.x.pitch() + sides.dy.pitch());
    for (uint32_t j = threadIdx.x; j < TILES * 16; j += THREADS) {
        float flow = 1.0f;
        if (layer.regions != 0 && j < rank) {
            flow = routing.weights(n)[routing.flow_region(routing.input_span(j))];
        }
        beside.flow[j] = flow;
    }
    const auto bring = [&](uint64_t row, char *to) {
        if (row < end) {
            if (trained) {
                fetch(to, sides.x, row, end, aligned, place);
            }
            fetch(to + ROWS * sides.x.pitch(), sides.dy, row, end, aligned, place);
        }
        commit_copies();
    };
    Gradients<TILES> acc = {};
    uint32_t slot = 0;
    if (stages > 1) {
        bring(first, room);
    }
    for (uint64_t row = first; row < end; row += ROWS) {
        char *stage = room + slot * bytes;
        if (stages > 1) {
            slot ^= 1;
            bring(row + ROWS, room + slot * bytes);
            await_copies<1>();
        } else {
            bring(row, stage);
            await_copies<0>();
        }
        __syncthreads();
        if (trained) {
            project<T, TILES>(stage, sides.x, rank, aligned, beside.sums[0][place.warp], place);
        }
        project<T, TILES>(stage + ROWS * sides.x.pitch(), sides.dy, rank, aligned,
                          beside.sums[1][place.warp], place);
        __syncthreads();
        finish<T, TILES>(beside, rank, scale, row, end, d, trained, place);
        __syncthreads();
        if (trained) {
            grow<T, TILES>(acc, stage, sides, beside, place);
        }
        __syncthreads();
    }
    if (!trained) {
        return;
    }
    const uint64_t length = uint64_t(rank) * (uint64_t(sides.x.width) + sides.dy.width);
    store<T, TILES>(acc, sides, rank, partials + (uint64_t(n) * gridDim.x + blockIdx.x) * length, place);
}

}  // namespace gradroute

#define LORA_FACTORS(NAME, T, TILES)                                                               \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS, 1)                             \
        NAME(LORA_ROUTED, const float *flow, const uint32_t *map, const T *x, const T *dy,         \
             const T *a, const T *b, float scale, uint64_t chunk, uint32_t stages,                 \
             float *partials, float *d) {                                                          \
        using namespace gradroute;                                                                 \
        const Routing flows{layer, categories, flow, nullptr, map};                                \
        const Routing routes{layer, categories, route, gates, nullptr};                            \
        const Routing a_routes{of_a, a_categories, a_route, a_gates, nullptr};                     \
        const Sides<T> sides{{x, a, of_a.inputs}, {dy, b, layer.outputs}};                         \
        lora_factors<T, TILES>(flows, Trained{a_routes, routes}, sides, offsets, scale, chunk,     \
                               stages, partials, d);                                               \
    }

// Of a rank up to 16, and up to 32.
LORA_FACTORS(lora_factors_f16, __half, 1)
LORA_FACTORS(lora_factors_bf16, __nv_bfloat16, 1)
LORA_FACTORS(lora_factors_32_f16, __half, 2)
LORA_FACTORS(lora_factors_32_bf16, __nv_bfloat16, 2)
