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
#define GRADROUTE_ABI_VERSION 3

/* Parameters of abi_probe: one field of each kind that kernel parameters are made of. */
typedef struct GradrouteProbeParams {
    uint64_t rows;
    int64_t offset;
    uint32_t features;
    int32_t shift;
    float scale;
    uint8_t flags[4];
} GradrouteProbeParams;

/* Words that abi_probe reports: what it received, 64-bit fields low word first (8), the version and the
 * constants at the end of this file (4), and the size and the offsets of the fields of each struct. */
#define GRADROUTE_PROBE_WORDS 65

/* Kinds of sketch. */
#define GRADROUTE_SKETCH_NONE 0
#define GRADROUTE_SKETCH_TWO_SIDED 1
#define GRADROUTE_SKETCH_COUNT 2

/* What is asked for, and how. */
#define GRADROUTE_DW 1
#define GRADROUTE_NORMS 2
#define GRADROUTE_ACCUMULATE 4
/* dw and db in the input's format, not in f32. */
#define GRADROUTE_NATIVE 8
#define GRADROUTE_SKETCH_ROUTED 16
/* The sketches' staging lies in shared memory, not in the workspace. */
#define GRADROUTE_STAGE_SHARED 32
/* All rows of the matrices begin at multiples of 16 bytes: they are copied so much at a time. */
#define GRADROUTE_ALIGNED 64
/* A two-sided sketch by projections of the rows, not of the finished gradient. */
#define GRADROUTE_SKETCH_ROWS 128
/* The rows of dY are summed beside the tiles, for the bias. */
#define GRADROUTE_BIAS 256

/* Rows of a sample whose projections one block multiplies, and the most columns they have. */
#define GRADROUTE_SKETCH_ROWS_PART 128
#define GRADROUTE_SKETCH_ROWS_MOST 32

/* The most rows that a sample of the factored path has when it is recorded. */
#define GRADROUTE_FEW_ROWS 32

/* Groups of 16 columns that each warp of lora_factors holds for 16 rows of the factors, and the most rows that
 * those have. */
#define GRADROUTE_LORA_GROUPS 20
#define GRADROUTE_LORA_RANK_MOST 32

/* Which sides of lora_wgrad are f32, the others being in the inputs' format: dY, X. */
#define GRADROUTE_LORA_DY_WIDE 1
#define GRADROUTE_LORA_X_WIDE 2

/* Any layer: its gradient matrix G [outputs, inputs], how it is routed and what is recorded.
 *
 * With regions = 0 every weight is 1. Otherwise the map of regions is an array of 32-bit words:
 *   ends of the output spans        [output_spans]
 *   ends of the input spans         [input_spans]
 *   region of the bias, per span    [output_spans]
 *   region of the flow, per span    [input_spans]
 *   region of the weights           [output_spans][input_spans]
 */
typedef struct GradrouteLayer {
    uint64_t rows;
    uint32_t samples;
    uint32_t outputs;
    uint32_t inputs;
    /* Column i of the matrix belongs to input feature i % features. */
    uint32_t features;
    /* Element (o, tap * features + feature) of dw stands at (o * features + feature) * taps + tap: 1 if dw
     * lies as the matrix does. */
    uint32_t taps;
    uint32_t regions;
    uint32_t output_spans;
    uint32_t input_spans;
    uint32_t flags;
    uint32_t sketch;
    /* Sides of a two-sided sketch; a count sketch has 1 by its buckets. */
    uint32_t sketch_outputs;
    uint32_t sketch_inputs;
    uint32_t seed;
    uint32_t layer;
    float sample_scale;
    /* 0: without it four bytes at the end would have no meaning. */
    uint32_t reserved;
} GradrouteLayer;

/* Division by a number fixed beforehand, of numbers below 2^31: see divisor.cuh. */
typedef struct GradrouteDivisor {
    uint32_t by;
    uint32_t multiplier;
    uint32_t shift;
} GradrouteDivisor;

/* A convolution, beside its layer; channels last, [N, height, width, channels]. Inputs of the layer are
 * kernel_height * kernel_width * features, features the channels of one group. */
typedef struct GradrouteConv {
    uint32_t height, width;
    uint32_t kernel_height, kernel_width;
    uint32_t stride_y, stride_x;
    uint32_t dilation_y, dilation_x;
    uint32_t pad_top, pad_left;
    uint32_t groups;
    /* What is outside the image: zeros, or the image again. */
    uint32_t circular;
    uint32_t out_height;
    GradrouteDivisor out_width;
    /* Output positions, pixels. */
    uint32_t positions, pixels;
    /* Tiles of outputs, or of inputs, that a group has. */
    uint32_t group_tiles;
} GradrouteConv;

/* What a normalisation normalises together. */
#define GRADROUTE_NORM_LAYER 0
#define GRADROUTE_NORM_RMS 1
#define GRADROUTE_NORM_GROUP 2

/* A normalisation, beside its layer: outputs are features or channels, inputs 1. */
typedef struct GradrouteNorm {
    /* Numbers that are normalised together. */
    uint64_t length;
    uint32_t kind;
    uint32_t groups;
    /* Features or channels among them. */
    uint32_t channels;
    float eps;
} GradrouteNorm;

/* Extents of the formed tile, and the threads that form it. */
#define GRADROUTE_TILE 128
#define GRADROUTE_THREADS 256
#define GRADROUTE_WARPS 8

#endif
