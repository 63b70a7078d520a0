//! Images with channels last, and the patches a convolution sees of them.
//!
//! Within a sample and channel group an image is `[pixels, C / groups]`, so that what one kernel
//! position sees is one contiguous run, and a patch, `[kh · kw · C / groups]`, comes in the
//! order of the gradient matrix's columns. Only a panel of patches exists at any time.

use std::ops::Range;

use super::tasks::for_blocks;
use crate::problem::{Conv2d, Element};

/// Pixels of one transposition task.
const PIXELS: usize = 256;
/// Edge of the squares a transposition goes by.
const SQUARE: usize = 8;

/// `to[j][i] = f(from[i][j])` for `from [rows, columns]`, rows `from_stride` and `to_stride`
/// elements apart.
#[inline(always)]
pub(crate) fn transpose<A: Copy, B>(
    from: &[A],
    [rows, columns]: [usize; 2],
    from_stride: usize,
    to: &mut [B],
    to_stride: usize,
    f: impl Fn(A) -> B,
) {
    for i0 in (0..rows).step_by(SQUARE) {
        for j0 in (0..columns).step_by(SQUARE) {
            let (height, width) = (SQUARE.min(rows - i0), SQUARE.min(columns - j0));
            let from = &from[i0 * from_stride + j0..];
            let to = &mut to[j0 * to_stride + i0..];
            if height == SQUARE && width == SQUARE {
                let square: [&[A]; SQUARE] =
                    std::array::from_fn(|i| &from[i * from_stride..][..SQUARE]);
                for j in 0..SQUARE {
                    let to = &mut to[j * to_stride..][..SQUARE];
                    for i in 0..SQUARE {
                        to[i] = f(square[i][j]);
                    }
                }
            } else {
                for j in 0..width {
                    for i in 0..height {
                        to[j * to_stride + i] = f(from[i * from_stride + j]);
                    }
                }
            }
        }
    }
}

/// `out [images, pixels, channels]` from `x [images, channels, pixels]`, an image being one
/// channel group of one sample.
pub(crate) fn channels_last<T: Element>(
    x: &[T],
    [images, channels, pixels]: [usize; 3],
    out: &mut [f32],
) {
    let parts = pixels.div_ceil(PIXELS);
    let bound = |k: usize| {
        let (image, part) = (k / parts, k % parts);
        (image * pixels + (part * PIXELS).min(pixels)) * channels
    };
    for_blocks(out, 0..images * parts, &bound, &|k, out| {
        let image = k / parts;
        if channels == 0 {
            return;
        }
        let from = &x[image * channels * pixels + k % parts * PIXELS..];
        let count = out.len() / channels;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || transpose(from, [channels, count], pixels, out, channels, T::to_f32),
        );
    });
}

/// Calls `f(at, source, len)` for every run of a panel `[positions, columns]` of patches: `len`
/// elements from `at`, seen at `source` of an image `[pixels, width]` or in zero padding.
#[inline(always)]
fn runs(
    problem: &Conv2d,
    width: usize,
    positions: Range<usize>,
    columns: Range<usize>,
    mut f: impl FnMut(usize, Option<usize>, usize),
) {
    let (spec, [_, out_width]) = (problem.spec(), problem.out_size());
    if columns.is_empty() {
        return;
    }
    let row = spec.kernel[1] * width;
    let mut at = 0;
    for p in positions {
        let (oy, ox) = (p / out_width, p % out_width);
        for r in columns.start / row..columns.end.div_ceil(row) {
            let (start, end) =
                (columns.start.max(r * row) - r * row, columns.end.min((r + 1) * row) - r * row);
            let Some(iy) = problem.source(0, oy, r) else {
                f(at, None, end - start);
                at += end - start;
                continue;
            };
            let (first, last) = (start / width, (end - 1) / width);
            let pixel = |s: usize| problem.source(1, ox, s).map(|ix| iy * spec.size[1] + ix);
            // Neighbouring kernel positions mostly see neighbouring pixels; that the first and the last do
            // shows it of those between, but where a dilated kernel goes around the image.
            if let (Some(from), Some(to)) = (pixel(first), pixel(last))
                && from + last == to + first
                && (first == last || spec.dilation[1] == 1)
            {
                f(at, Some(from * width + start - first * width), end - start);
                at += end - start;
                continue;
            }
            for s in first..=last {
                let (start, end) = (start.max(s * width), end.min((s + 1) * width));
                f(at, pixel(s).map(|pixel| pixel * width + start - s * width), end - start);
                at += end - start;
            }
        }
    }
}

/// Fills `panel [positions, columns]` with patches of `image [pixels, width]`.
pub(crate) fn gather(
    problem: &Conv2d,
    image: &[f32],
    width: usize,
    positions: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    runs(problem, width, positions, columns, |at, source, len| {
        let to = &mut panel[at..at + len];
        match source {
            Some(from) => to.copy_from_slice(&image[from..from + len]),
            None => to.fill(0.0),
        }
    });
}
