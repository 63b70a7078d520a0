// Backward pass of layer, root-mean-square and group normalisation.
//
// Statistics and sums are in f64: few numbers come of many that cancel, and the kernels wait for memory
// anyway. A set is what is normalised together: a row of features (layer, RMS), or a sample's channels of a
// group at all positions. A block handles one set, in three kernels: statistics, the two columns of each
// sample's gradient (of gamma and of beta), and dX.
#include "vectors.cuh"

namespace gradroute {

// Mean and the factor that normalises, for each set.
template <typename T>
__device__ inline void norm_statistics(const GradrouteNorm &norm, const T *x, double2 *statistics) {
    __shared__ double shared[WARPS];
    const uint64_t set = blockIdx.x;
    const T *own = x + set * norm.length;
    double mean = 0.0;
    if (norm.kind != GRADROUTE_NORM_RMS) {
        for (uint64_t at = threadIdx.x; at < norm.length; at += THREADS) {
            mean += double(widen(own[at]));
        }
        mean = block_sum(mean, shared) / double(norm.length);
    }
    double square = 0.0;
    for (uint64_t at = threadIdx.x; at < norm.length; at += THREADS) {
        const double centred = double(widen(own[at])) - mean;
        square += centred * centred;
    }
    square = block_sum(square, shared) / double(norm.length);
    if (threadIdx.x == 0) {
        statistics[set] = make_double2(mean, 1.0 / sqrt(square + double(norm.eps)));
    }
}

// Each sample's gradient: gamma [N, outputs], beta [N, outputs] unless it is null.
template <typename T>
__device__ inline void norm_columns(const GradrouteLayer &layer, const GradrouteNorm &norm,
                                    const T *x, const T *dy, const uint64_t *offsets,
                                    const double2 *statistics, float *gamma, float *beta) {
    __shared__ double sums[2][WARPS][32];
    const uint32_t n = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint64_t begin = offsets[n], end = offsets[n + 1];
    double scaled = 0.0, plain = 0.0;
    const auto add = [&](uint64_t at, uint64_t set) {
        const double2 known = statistics[set];
        const double value = widen(dy[at]);
        scaled += value * ((double(widen(x[at])) - known.x) * known.y);
        plain += value;
    };
    if (norm.kind == GRADROUTE_NORM_GROUP) {
        // A warp takes a channel, its lanes the positions.
        const uint32_t channel = blockIdx.x * WARPS + warp;
        if (channel >= layer.outputs) {
            return;
        }
        const uint64_t positions = end - begin;
        const uint64_t first = begin * layer.outputs + channel * positions;
        const uint64_t set = uint64_t(n) * norm.groups + channel / norm.channels;
        for (uint64_t at = lane; at < positions; at += 32) {
            add(first + at, set);
        }
        scaled = warp_sum(scaled);
        plain = warp_sum(plain);
        if (lane == 0) {
            gamma[uint64_t(n) * layer.outputs + channel] = float(scaled);
            if (beta != nullptr) {
                beta[uint64_t(n) * layer.outputs + channel] = float(plain);
            }
        }
        return;
    }
    // A lane takes a feature, the warps the rows.
    const uint32_t feature = blockIdx.x * 32 + lane;
    if (feature < layer.outputs) {
        for (uint64_t row = begin + warp; row < end; row += WARPS) {
            add(row * layer.outputs + feature, row);
        }
    }
    sums[0][warp][lane] = scaled;
    sums[1][warp][lane] = plain;
    __syncthreads();
    if (warp < 2 && feature < layer.outputs) {
        float *to = warp == 0 ? gamma : beta;
        double sum = 0.0;
#pragma unroll
        for (int other = 0; other < WARPS; ++other) {
            sum += sums[warp][other][lane];
        }
        if (to != nullptr) {
            to[uint64_t(n) * layer.outputs + feature] = float(sum);
        }
    }
}

// dx = flow · inverse · (dn - mean(dn) - x̂ · mean(dn · x̂)), dn = gamma · dy.
template <typename T>
__device__ inline void norm_dx(const GradrouteLayer &layer, const GradrouteNorm &norm, const T *x,
                               const T *dy, const T *weight, const uint64_t *offsets,
                               const Routing &routing, const double2 *statistics, T *dx) {
    __shared__ double shared[WARPS];
    const uint64_t set = blockIdx.x, first = set * norm.length;
    const double2 known = statistics[set];
    const bool grouped = norm.kind == GRADROUTE_NORM_GROUP;
    const uint64_t positions = norm.length / norm.channels;
    const uint32_t base = grouped ? set % norm.groups * norm.channels : 0;
    const auto channel = [&](uint64_t at) { return base + uint32_t(at / positions); };
    const auto scaled = [&](uint64_t at) {
        return double(widen(dy[first + at])) * double(widen(weight[channel(at)]));
    };
    const auto normalised = [&](uint64_t at) {
        return (double(widen(x[first + at])) - known.x) * known.y;
    };
    double sum = 0.0, slope = 0.0;
    for (uint64_t at = threadIdx.x; at < norm.length; at += THREADS) {
        const double dn = scaled(at);
        sum += dn;
        slope += dn * normalised(at);
    }
    sum = block_sum(sum, shared);
    slope = block_sum(slope, shared) / double(norm.length);
    const double mean = norm.kind == GRADROUTE_NORM_RMS ? 0.0 : sum / double(norm.length);
    float flow = 1.0f;
    if (layer.regions != 0) {
        const uint32_t n =
            grouped ? uint32_t(set / norm.groups) : sample_of(offsets, layer.samples, set);
        const uint64_t category = routing.categories[n];
        flow = routing.table[category * layer.regions + routing.flow_region(0)];
    }
    for (uint64_t at = threadIdx.x; at < norm.length; at += THREADS) {
        const double all = known.y * (scaled(at) - mean - normalised(at) * slope);
        dx[first + at] = narrow<T>(weigh(flow, float(all)));
    }
}

}  // namespace gradroute

// `table` holds flow weights in norm_dx.
#define NORM_BACKWARD(NAME, T)                                                                     \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        norm_statistics_##NAME(const __grid_constant__ GradrouteNorm norm, const T *x,             \
                               double2 *statistics) {                                               \
        gradroute::norm_statistics(norm, x, statistics);                                           \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        norm_columns_##NAME(const __grid_constant__ GradrouteLayer layer,                          \
                            const __grid_constant__ GradrouteNorm norm, const T *x, const T *dy,   \
                            const uint64_t *offsets, const double2 *statistics, float *gamma,       \
                            float *beta) {                                                         \
        gradroute::norm_columns(layer, norm, x, dy, offsets, statistics, gamma, beta);             \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(GRADROUTE_THREADS)                                \
        norm_dx_##NAME(const __grid_constant__ GradrouteLayer layer,                               \
                       const __grid_constant__ GradrouteNorm norm, const T *x, const T *dy,        \
                       const T *weight, const uint64_t *offsets, const uint32_t *categories,       \
                       const float *table, const uint32_t *map, const double2 *statistics,          \
                       T *dx) {                                                                    \
        const gradroute::Routing routing{layer, categories, table, nullptr, map};                  \
        gradroute::norm_dx(layer, norm, x, dy, weight, offsets, routing, statistics, dx);          \
    }

NORM_BACKWARD(f32, float)
NORM_BACKWARD(f16, __half)
NORM_BACKWARD(bf16, __nv_bfloat16)
