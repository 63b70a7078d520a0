//! Patches with channels first, `[C / groups · kh · kw, positions]`: the order of `W` itself.
//!
//! What one kernel position sees of a channel is, but for padding, a few long runs of its plane.
//! [`Taps`] finds them once per call; a panel of patches is then copies of them, with zeros
//! written over what lies in padding.

use std::ops::Range;

use crate::problem::Conv2d;

/// Output positions from `at` on that see pixels from `from` on, one each.
#[derive(Clone, Copy, Debug)]
struct Run {
    at: usize,
    from: usize,
    len: usize,
}

/// What every kernel position sees, in the order of `kh · kw`.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    runs: Vec<Run>,
    /// Output positions that see zero padding; a run may pass over some of them.
    padding: Vec<usize>,
    /// Where a kernel position's share of the two ends.
    ends: Vec<[usize; 2]>,
}

impl Taps {
    /// Those of a convolution.
    pub(crate) fn set(&mut self, problem: &Conv2d) {
        self.runs.clear();
        self.padding.clear();
        self.ends.clear();
        let [height, width] = problem.spec().kernel;
        for r in 0..height {
            for s in 0..width {
                self.add(problem, [r, s]);
                self.ends.push([self.runs.len(), self.padding.len()]);
            }
        }
    }

    fn add(&mut self, problem: &Conv2d, [r, s]: [usize; 2]) {
        let (first, [out_height, out_width]) = (self.runs.len(), problem.out_size());
        for oy in 0..out_height {
            let iy = problem.source(0, oy, r);
            for ox in 0..out_width {
                let at = oy * out_width + ox;
                let (Some(iy), Some(ix)) = (iy, problem.source(1, ox, s)) else {
                    self.padding.push(at);
                    continue;
                };
                let from = iy * problem.spec().size[1] + ix;
                match self.runs[first..].last_mut() {
                    // The same distance apart as before, whatever lies in between.
                    Some(run) if from + run.at == run.from + at => run.len = at + 1 - run.at,
                    _ => self.runs.push(Run { at, from, len: 1 }),
                }
            }
        }
    }

    /// Fills rows `0..channels · kh · kw` of `panel`, `stride` apart, with what the positions see
    /// of `image [channels, pixels]`.
    pub(crate) fn gather(
        &self,
        image: &[f32],
        pixels: usize,
        positions: Range<usize>,
        panel: &mut [f32],
        stride: usize,
    ) {
        let mut rows = panel.chunks_mut(stride);
        for plane in image.chunks_exact(pixels) {
            for (tap, row) in (0..self.ends.len()).zip(&mut rows) {
                for (at, from) in self.runs(tap, &positions) {
                    let seen = &plane[from..from + at.len()];
                    row[at].copy_from_slice(seen);
                }
                self.padding(tap, &positions).for_each(|at| row[at] = 0.0);
            }
        }
    }

    /// Adds `panel [channels · kh · kw, positions]`, gradients of patches, to those of the
    /// `image [channels, pixels]` that they were taken from. What lies in padding is overwritten.
    pub(crate) fn scatter(
        &self,
        panel: &mut [f32],
        positions: Range<usize>,
        image: &mut [f32],
        pixels: usize,
    ) {
        let mut rows = panel.chunks_exact_mut(positions.len());
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for plane in image.chunks_exact_mut(pixels) {
                    for (tap, row) in (0..self.ends.len()).zip(&mut rows) {
                        // A run passes over padding, whose zeros are added to pixels that exist.
                        self.padding(tap, &positions).for_each(|at| row[at] = 0.0);
                        for (at, from) in self.runs(tap, &positions) {
                            let to = &mut plane[from..from + at.len()];
                            to.iter_mut().zip(&row[at]).for_each(|(to, from)| *to += from);
                        }
                    }
                }
            },
        );
    }

    /// The runs of a kernel position within these positions: where in their panel, from which pixel on.
    fn runs(
        &self,
        tap: usize,
        positions: &Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (start, end) = (positions.start, positions.end);
        let runs = &self.runs[self.start(tap)[0]..self.ends[tap][0]];
        let skipped = runs.partition_point(|run| run.at + run.len <= start);
        runs[skipped..].iter().take_while(move |run| run.at < end).map(move |run| {
            let (first, last) = (run.at.max(start), (run.at + run.len).min(end));
            (first - start..last - start, run.from + first - run.at)
        })
    }

    /// Those of these positions whose kernel position sees padding, counted from the first.
    fn padding(&self, tap: usize, positions: &Range<usize>) -> impl Iterator<Item = usize> {
        let (start, end) = (positions.start, positions.end);
        let padding = &self.padding[self.start(tap)[1]..self.ends[tap][1]];
        let skipped = padding.partition_point(|&at| at < start);
        padding[skipped..].iter().take_while(move |&&at| at < end).map(move |at| at - start)
    }

    fn start(&self, tap: usize) -> [usize; 2] {
        if tap == 0 { [0, 0] } else { self.ends[tap - 1] }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Run>() * self.runs.capacity()
            + size_of::<usize>() * (self.padding.capacity() + 2 * self.ends.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::conv2d::tests::kinds;
    use crate::cpu::testing::noise;

    #[test]
    fn panels_hold_what_the_convolution_sees() {
        let mut taps = Taps::default();
        for spec in kinds() {
            let problem = Conv2d::new(spec).unwrap();
            taps.set(&problem);
            let ([height, width], [out_height, out_width]) = (spec.size, problem.out_size());
            let (pixels, positions) = (height * width, out_height * out_width);
            let image = noise(2 * pixels, 1);
            for seen in [0..positions, positions / 3..positions / 2, positions / 2..positions] {
                let stride = seen.len() + 3;
                let mut panel = vec![f32::NAN; 2 * problem.gradient().taps() * stride];
                if seen.is_empty() {
                    continue;
                }
                taps.gather(&image, pixels, seen.clone(), &mut panel, stride);
                for (row, panel) in panel.chunks_exact(stride).enumerate() {
                    let (c, tap) =
                        (row / problem.gradient().taps(), row % problem.gradient().taps());
                    for (p, got) in seen.clone().zip(panel) {
                        let iy = problem.source(0, p / out_width, tap / spec.kernel[1]);
                        let ix = problem.source(1, p % out_width, tap % spec.kernel[1]);
                        let pixel = iy.zip(ix).map(|(iy, ix)| c * pixels + iy * width + ix);
                        assert_eq!(*got, pixel.map_or(0.0, |pixel| image[pixel]), "{spec:?}");
                    }
                    assert!(panel[seen.len()..].iter().all(|rest| rest.is_nan()));
                }
            }
        }
    }
}
