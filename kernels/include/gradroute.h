/* The one contract between host and device: plain structs, passed to the kernels by value.
 *
 * Rust's side is generated from this file into src/cuda/generated.rs; a test compares them, and
 * the kernel abi_probe reports how the device's compiler laid a struct out. Buffers are
 * separate kernel arguments, never pointers inside a struct.
 */
#ifndef GRADROUTE_H
#define GRADROUTE_H

#include <stdint.h>

/* Raised whenever a struct below changes its layout or its meaning. */
#define GRADROUTE_ABI_VERSION 1

/* Parameters of abi_probe: one field of each kind that kernel parameters are made of. */
typedef struct GradrouteProbeParams {
    uint64_t rows;
    int64_t offset;
    uint32_t features;
    int32_t shift;
    float scale;
    uint8_t flags[4];
} GradrouteProbeParams;

/* Words that abi_probe reports: the version, the struct's size, the offsets of its six fields, and
 * what it received, 64-bit fields low word first. */
#define GRADROUTE_PROBE_WORDS 16

#endif
