// Reports the contract as the device's compiler sees it, so that the host can compare.
#include <stddef.h>

#include "gradroute.h"

extern "C" __global__ void __launch_bounds__(32)
    abi_probe(const __grid_constant__ GradrouteProbeParams params, uint32_t *report) {
    if (blockIdx.x != 0 || threadIdx.x != 0) {
        return;
    }
    const uint64_t offset = static_cast<uint64_t>(params.offset);
    const uint32_t words[] = {
        static_cast<uint32_t>(params.rows),
        static_cast<uint32_t>(params.rows >> 32),
        static_cast<uint32_t>(offset),
        static_cast<uint32_t>(offset >> 32),
        params.features,
        static_cast<uint32_t>(params.shift),
        __float_as_uint(params.scale),
        params.flags[0] | params.flags[1] << 8 | params.flags[2] << 16
            | static_cast<uint32_t>(params.flags[3]) << 24,
        GRADROUTE_ABI_VERSION,
        GRADROUTE_TILE,
        GRADROUTE_THREADS,
        GRADROUTE_WARPS,
        sizeof(GradrouteProbeParams),
        offsetof(GradrouteProbeParams, rows),
        offsetof(GradrouteProbeParams, offset),
        offsetof(GradrouteProbeParams, features),
        offsetof(GradrouteProbeParams, shift),
        offsetof(GradrouteProbeParams, scale),
        offsetof(GradrouteProbeParams, flags),
        sizeof(GradrouteLayer),
        offsetof(GradrouteLayer, rows),
        offsetof(GradrouteLayer, samples),
        offsetof(GradrouteLayer, outputs),
        offsetof(GradrouteLayer, inputs),
        offsetof(GradrouteLayer, features),
        offsetof(GradrouteLayer, taps),
        offsetof(GradrouteLayer, regions),
        offsetof(GradrouteLayer, output_spans),
        offsetof(GradrouteLayer, input_spans),
        offsetof(GradrouteLayer, flags),
        offsetof(GradrouteLayer, sketch),
        offsetof(GradrouteLayer, sketch_outputs),
        offsetof(GradrouteLayer, sketch_inputs),
        offsetof(GradrouteLayer, seed),
        offsetof(GradrouteLayer, layer),
        offsetof(GradrouteLayer, sample_scale),
        offsetof(GradrouteLayer, reserved),
        sizeof(GradrouteNorm),
        offsetof(GradrouteNorm, length),
        offsetof(GradrouteNorm, kind),
        offsetof(GradrouteNorm, groups),
        offsetof(GradrouteNorm, channels),
        offsetof(GradrouteNorm, eps),
        sizeof(GradrouteDivisor),
        offsetof(GradrouteDivisor, by),
        offsetof(GradrouteDivisor, multiplier),
        offsetof(GradrouteDivisor, shift),
        sizeof(GradrouteConv),
        offsetof(GradrouteConv, height),
        offsetof(GradrouteConv, width),
        offsetof(GradrouteConv, kernel_height),
        offsetof(GradrouteConv, kernel_width),
        offsetof(GradrouteConv, stride_y),
        offsetof(GradrouteConv, stride_x),
        offsetof(GradrouteConv, dilation_y),
        offsetof(GradrouteConv, dilation_x),
        offsetof(GradrouteConv, pad_top),
        offsetof(GradrouteConv, pad_left),
        offsetof(GradrouteConv, groups),
        offsetof(GradrouteConv, circular),
        offsetof(GradrouteConv, out_height),
        offsetof(GradrouteConv, out_width),
        offsetof(GradrouteConv, positions),
        offsetof(GradrouteConv, pixels),
        offsetof(GradrouteConv, group_tiles),
    };
    static_assert(sizeof(words) == GRADROUTE_PROBE_WORDS * sizeof(uint32_t));
    // Unrolled, so that the array stays in registers.
#pragma unroll
    for (int i = 0; i < GRADROUTE_PROBE_WORDS; ++i) {
        report[i] = words[i];
    }
}
