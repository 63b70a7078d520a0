// Where a convolution's kernel elements fall, channels last.
#pragma once

#include "gradroute.h"

namespace gradroute {

// n / by, for n below 2^31 (Granlund and Montgomery, 1994, section 4).
__device__ inline uint32_t divide(uint32_t n, const GradrouteDivisor &divisor) {
    return (__umulhi(n, divisor.multiplier) + n) >> divisor.shift;
}

// A kernel element: what it adds to an output position's place in the image.
struct Tap {
    int y, x;

    __device__ static Tap of(const GradrouteConv &conv, uint32_t tap) {
        const uint32_t row = tap / conv.kernel_width, column = tap - row * conv.kernel_width;
        return {int(row * conv.dilation_y) - int(conv.pad_top),
                int(column * conv.dilation_x) - int(conv.pad_left)};
    }
};

// A coordinate inside the image, where the padding wraps around; it lies at most one image outside.
__device__ inline int wrapped(int at, uint32_t size) {
    return at < 0 ? at + int(size) : at >= int(size) ? at - int(size) : at;
}

// The pixel that output position `position` of sample n sees through a tap, if it is not padding.
__device__ inline bool pixel_of(const GradrouteConv &conv, uint32_t n, uint32_t position, Tap tap,
                                uint64_t &pixel) {
    const uint32_t row = divide(position, conv.out_width);
    int y = int(row * conv.stride_y) + tap.y;
    int x = int((position - row * conv.out_width.by) * conv.stride_x) + tap.x;
    if (conv.circular) {
        y = wrapped(y, conv.height);
        x = wrapped(x, conv.width);
    }
    pixel = uint64_t(n) * conv.pixels + uint32_t(y) * conv.width + uint32_t(x);
    return uint32_t(y) < conv.height && uint32_t(x) < conv.width;
}

// The output coordinate that sees image coordinate `at` through a kernel element at `offset`, if any.
__device__ inline bool seen_from(int at, int offset, uint32_t stride, uint32_t out, uint32_t &from) {
    const int back = at - offset;
    from = uint32_t(back) / stride;
    return back >= 0 && from * stride == uint32_t(back) && from < out;
}

}  // namespace gradroute
