// Reports the contract as the device's compiler sees it, so that the host can compare.
#include <stddef.h>

#include "gradroute.h"

extern "C" __global__ void __launch_bounds__(32)
    abi_probe(const __grid_constant__ GradrouteProbeParams params, uint32_t *report) {
    if (blockIdx.x != 0 || threadIdx.x != 0) {
        return;
    }
    const uint64_t offset = static_cast<uint64_t>(params.offset);
    const uint32_t words[GRADROUTE_PROBE_WORDS] = {
        GRADROUTE_ABI_VERSION,
        sizeof(GradrouteProbeParams),
        offsetof(GradrouteProbeParams, rows),
        offsetof(GradrouteProbeParams, offset),
        offsetof(GradrouteProbeParams, features),
        offsetof(GradrouteProbeParams, shift),
        offsetof(GradrouteProbeParams, scale),
        offsetof(GradrouteProbeParams, flags),
        static_cast<uint32_t>(params.rows),
        static_cast<uint32_t>(params.rows >> 32),
        static_cast<uint32_t>(offset),
        static_cast<uint32_t>(offset >> 32),
        params.features,
        static_cast<uint32_t>(params.shift),
        __float_as_uint(params.scale),
        params.flags[0] | params.flags[1] << 8 | params.flags[2] << 16
            | static_cast<uint32_t>(params.flags[3]) << 24,
    };
    // Unrolled, so that the array stays in registers.
#pragma unroll
    for (int i = 0; i < GRADROUTE_PROBE_WORDS; ++i) {
        report[i] = words[i];
    }
}
