// What few rows say of a sample's gradient without forming it: its squared norm, by the Gram form
// Σ_{t,t'} (x_t · x_t') (dy_t · dy_t'), and its two-sided sketch, (dY P_o)ᵀ (X P_i). Both from one read of the
// rows, since the registers that hold them are operands of either product.
//
// Grid: [samples]; none has more than GRADROUTE_FEW_ROWS rows, no side of the sketch more than
// GRADROUTE_SKETCH_ROWS_MOST columns.
#include "matrix.cuh"
#include "vectors.cuh"

namespace gradroute {

constexpr int ROWS = GRADROUTE_FEW_ROWS, MOST = GRADROUTE_SKETCH_ROWS_MOST;
// Apart, so that the pairs of numbers that half a warp has of four rows lie in different banks.
constexpr int PITCH = 40;
static_assert(PITCH >= ROWS && PITCH >= MOST);

// One side of the gradient: a sample's rows of X or dY, and their signs' key.
template <typename T>
struct Side {
    const T *rows;
    uint32_t width, side, columns;
};

// What is asked of the rows.
struct Asked {
    const GradrouteLayer &layer;
    // Rows, and groups of eight of them.
    uint32_t count, groups;
    bool norms, sketch, aligned;
};

// Products of a side's rows with each other, of which those of 16 rows with rows above them are left out,
// and with the signs.
struct Products {
    float gram[ROWS][PITCH], signs[ROWS][PITCH];
};

__device__ inline float sum_of(float one, float other) { return one + other; }
__device__ inline float2 sum_of(float2 one, float2 other) {
    return make_float2(one.x + other.x, one.y + other.y);
}

// Adds the warps' numbers one warp after the other. All threads of the block; `each(add)` hands the warp's
// numbers, or pairs of them, to `add(to, numbers)`.
template <typename Each>
__device__ inline void add_warps(const Each &each) {
    for (int turn = 0; turn < WARPS; ++turn) {
        if (threadIdx.x / 32 == turn) {
            each([&](auto &to, auto numbers) {
                if (turn > 0) {
                    numbers = sum_of(to, numbers);
                }
                to = numbers;
            });
        }
        __syncthreads();
    }
}

// Eight numbers of a row, from column `column` on, in four words; zeros behind its end.
template <typename T>
__device__ inline void load_words(uint32_t (&words)[4], const T *row, uint32_t column, uint32_t width,
                                  bool aligned) {
    if (aligned) {
        uint4 four = make_uint4(0, 0, 0, 0);
        if (column < width) {
            four = *reinterpret_cast<const uint4 *>(row + column);
        }
        words[0] = four.x;
        words[1] = four.y;
        words[2] = four.z;
        words[3] = four.w;
        return;
    }
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        const auto *bits = reinterpret_cast<const uint16_t *>(row) + column + 2 * word;
        const uint32_t low = column + 2 * word < width ? bits[0] : 0;
        const uint32_t high = column + 2 * word + 1 < width ? bits[1] : 0;
        words[word] = low | high << 16;
    }
}

// Of 16-bit numbers, by matrix instructions. A lane holds eight neighbouring columns of a row; the order in
// which a product takes columns is free, so that they serve as they are, as left and as right operand.
template <typename T>
__device__ inline void multiply_rows(const Side<T> &of, const Asked &asked, Products &to) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // Of rows 16 · m and groups of columns n: below the diagonal there is none.
    float gram[2][4][4] = {}, signs[2][4][4] = {};
    for (uint32_t first = 32 * warp; first < of.width; first += 32 * WARPS) {
        uint32_t words[4][4] = {};
#pragma unroll
        for (uint32_t group = 0; group < 4; ++group) {
            const uint32_t row = 8 * group + g;
            if (row < asked.count) {
                load_words(words[group], of.rows + uint64_t(row) * of.width, first + 8 * t, of.width,
                           asked.aligned);
            }
        }
        uint32_t drawn = 0;
        if (asked.sketch) {
            drawn = first_sign_word(asked.layer, of.side, first + lane);
        }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t own[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                own[k] = __shfl_sync(0xffffffffu, drawn, 8 * t + 4 * step + k);
            }
#pragma unroll
            for (uint32_t m = 0; m < 2; ++m) {
                if (2 * m >= asked.groups) {
                    continue;
                }
                const uint32_t left[4] = {words[2 * m][2 * step], words[2 * m + 1][2 * step],
                                          words[2 * m][2 * step + 1], words[2 * m + 1][2 * step + 1]};
#pragma unroll
                for (uint32_t n = 2 * m; n < 4; ++n) {
                    if (asked.norms && n < asked.groups) {
                        multiply<T>(gram[m][n], left, words[n][2 * step], words[n][2 * step + 1]);
                    }
                }
#pragma unroll
                for (uint32_t n = 0; n < 4; ++n) {
                    if (asked.sketch && 8 * n < of.columns) {
                        multiply<T>(signs[m][n], left, sign_pair<T>(own[0], own[1], 8 * n + g),
                                    sign_pair<T>(own[2], own[3], 8 * n + g));
                    }
                }
            }
        }
    }
    add_warps([&](const auto &add) {
#pragma unroll
        for (uint32_t pair = 0; pair < 16; ++pair) {
            const uint32_t m = pair / 8, n = pair / 2 % 4, half = pair % 2;
            const uint32_t group = 2 * m + half, row = 8 * group + g, column = 8 * n + 2 * t;
            const auto both = [&](const float(&of)[4]) {
                return make_float2(of[2 * half], of[2 * half + 1]);
            };
            // Nobody reads what is of no row or column.
            if (asked.norms && n >= 2 * m && group < asked.groups && n < asked.groups) {
                add(reinterpret_cast<float2 &>(to.gram[row][column]), both(gram[m][n]));
            }
            if (asked.sketch && group < asked.groups && 8 * n < of.columns) {
                add(reinterpret_cast<float2 &>(to.signs[row][column]), both(signs[m][n]));
            }
        }
    });
}

// Of f32 numbers. A lane has the products with one row, and with one column of the signs.
__device__ inline void multiply_rows(const Side<float> &of, const Asked &asked, Products &to) {
    constexpr uint32_t WIDTH = 16;
    __shared__ float parts[WARPS][ROWS][WIDTH + 1];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float(&part)[ROWS][WIDTH + 1] = parts[warp];
    float gram[ROWS] = {}, signs[ROWS] = {};
    for (uint32_t first = WIDTH * warp; first < of.width; first += WIDTH * WARPS) {
        __syncwarp();
        for (uint32_t at = lane; at < ROWS * WIDTH; at += 32) {
            const uint32_t row = at / WIDTH, column = first + at % WIDTH;
            const bool there = row < asked.count && column < of.width;
            part[row][at % WIDTH] = there ? of.rows[uint64_t(row) * of.width + column] : 0.0f;
        }
        __syncwarp();
        uint32_t drawn = 0;
        if (asked.sketch) {
            drawn = first_sign_word(asked.layer, of.side, first + lane % WIDTH);
        }
#pragma unroll 1
        for (uint32_t column = 0; column < WIDTH; ++column) {
            const float own = part[lane][column];
            const uint32_t sign = __shfl_sync(0xffffffffu, drawn, column) >> lane << 31;
#pragma unroll
            for (uint32_t row = 0; row < ROWS; ++row) {
                if (row < 8 * asked.groups) {
                    const float number = part[row][column];
                    gram[row] += number * own;
                    signs[row] += __uint_as_float(__float_as_uint(number) ^ sign);
                }
            }
        }
    }
    add_warps([&](const auto &add) {
#pragma unroll
        for (uint32_t row = 0; row < ROWS; ++row) {
            add(to.gram[row][lane], gram[row]);
            add(to.signs[row][lane], signs[row]);
        }
    });
}

template <typename T>
__device__ inline void sample_gram(const Routing &routing, const T *x, const T *dy,
                                   const uint64_t *offsets, float factor, float *sq_norm,
                                   float *sketch) {
    __shared__ Products left, right;
    __shared__ float shared[WARPS];
    const GradrouteLayer &layer = routing.layer;
    const uint32_t n = blockIdx.x, k_o = layer.sketch_outputs, k_i = layer.sketch_inputs;
    const uint64_t first = offsets[n];
    const uint32_t count = min(uint32_t(offsets[n + 1] - first), uint32_t(ROWS));
    const Asked asked{layer,
                      count,
                      (count + 7) / 8,
                      (layer.flags & GRADROUTE_NORMS) != 0,
                      layer.sketch != GRADROUTE_SKETCH_NONE,
                      (layer.flags & GRADROUTE_ALIGNED) != 0};
    const Side<T> outputs{dy + first * layer.outputs, layer.outputs, SIDE_OUTPUTS, k_o};
    const Side<T> inputs{x + first * layer.inputs, layer.inputs, SIDE_INPUTS, k_i};
    multiply_rows(outputs, asked, left);
    multiply_rows(inputs, asked, right);
    if (asked.norms) {
        float sum = 0.0f;
        for (uint32_t at = threadIdx.x; at < ROWS * ROWS; at += THREADS) {
            const uint32_t row = at / ROWS, column = at % ROWS;
            if (row < count && column < count && row / 16 <= column / 16) {
                const float both = left.gram[row][column] * right.gram[row][column];
                // What is left out below the diagonal is the same as above it.
                sum += row / 16 < column / 16 ? 2.0f * both : both;
            }
        }
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) {
            // Rounding may leave less than nothing of a sum that cancels; NaN stays.
            sq_norm[n] = layer.sample_scale * layer.sample_scale * (sum < 0.0f ? 0.0f : sum);
        }
    }
    if (!asked.sketch) {
        return;
    }
    const bool routed = layer.flags & GRADROUTE_SKETCH_ROUTED;
    for (uint32_t at = threadIdx.x; at < k_o * k_i; at += THREADS) {
        float sum = 0.0f;
        for (uint32_t row = 0; row < count; ++row) {
            sum += left.signs[row][at / k_i] * right.signs[row][at % k_i];
        }
        sketch[uint64_t(n) * k_o * k_i + at] =
            factor * (routed ? weigh(routing.weight(n, 0), sum) : sum);
    }
}

}  // namespace gradroute

// `table` has one region where the sketch is of the routed gradient.
#define SAMPLE_GRAM(NAME, T)                                                                       \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        NAME(const __grid_constant__ GradrouteLayer layer, const T *x, const T *dy,                \
             const uint64_t *offsets, const uint32_t *categories, const float *table,              \
             const float *gates, float factor, float *sq_norm, float *sketch) {                    \
        const gradroute::Routing routing{layer, categories, table, gates, nullptr};                \
        gradroute::sample_gram(routing, x, dy, offsets, factor, sq_norm, sketch);                  \
    }

SAMPLE_GRAM(sample_gram_f32, float)
SAMPLE_GRAM(sample_gram_f16, __half)
SAMPLE_GRAM(sample_gram_bf16, __nv_bfloat16)
