//! The factored path: what products of a layer's rows give without forming any gradient.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};
use rayon::prelude::*;

use super::flush::{self, EDGE, Hashes};
use super::gemm::{Write, gemm, par_gemm, view, view_mut};
use super::gram;
use super::narrow::par_product;
use super::regions::{Rect, one_region, pieces, route};
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::{LinearInputs, Options};
use crate::problem::{GradientShape, Rows};

/// Mean rows per product from which one product per run of samples beats gathering their rows.
const LONG_RUN: usize = 32;

/// Rows and operands of a linear layer, in `f32`.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) rows: &'a Rows,
    pub(crate) shape: GradientShape,
    pub(crate) options: &'a Options<'a>,
    pub(crate) inputs: LinearInputs<'a, f32>,
}

/// Rows copied together.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Gathered {
    pub(crate) fn bytes(&self) -> usize {
        size_of::<f32>() * (self.x.capacity() + self.dy.capacity())
    }
}

/// Consecutive samples of one weight: their rows and the weight. Empty samples join any run.
fn runs<'a>(
    rows: &'a Rows,
    weight: impl Fn(usize) -> f32 + 'a,
) -> impl Iterator<Item = (Range<usize>, f32)> + 'a {
    let mut n = 0;
    std::iter::from_fn(move || {
        while n < rows.samples() && rows.range(n).is_empty() {
            n += 1;
        }
        if n == rows.samples() {
            return None;
        }
        let (first, run) = (n, weight(n));
        while n < rows.samples() && (rows.range(n).is_empty() || weight(n) == run) {
            n += 1;
        }
        Some((rows.range(first).start..rows.range(n - 1).end, run))
    })
}

impl Operands<'_> {
    fn x(&self) -> MatRef<'_, f32> {
        let inputs = self.shape.inputs();
        view(self.inputs.x, self.rows.total(), inputs, inputs)
    }

    fn dy(&self) -> MatRef<'_, f32> {
        let outputs = self.shape.outputs();
        view(self.inputs.dy, self.rows.total(), outputs, outputs)
    }

    /// `dw (+)= Σ_n route_n · G_n`: one product per region, or one per run of samples.
    pub(crate) fn dw(&self, dw: &mut [f32], accumulate: bool, gathered: &mut Gathered) {
        let (outputs, inputs) = (self.shape.outputs(), self.shape.inputs());
        let mut dw = view_mut(dw, outputs, inputs, inputs);
        let whole = Rect::whole(self.shape);
        for (at, region) in pieces(&whole, self.shape, self.options) {
            let (height, width) = (at.outputs.len(), at.inputs.len());
            let out = dw.rb_mut().submatrix_mut(at.outputs.start, at.inputs.start, height, width);
            let write = Write::of(accumulate);
            self.dw_piece(&at, region, out, write, gathered);
        }
    }

    fn dw_piece(
        &self,
        at: &Rect,
        region: usize,
        mut out: MatMut<f32>,
        mut write: Write,
        gathered: &mut Gathered,
    ) {
        let weight = |n| route(self.options, n, region);
        let trained = || runs(self.rows, weight).filter(|(_, weight)| *weight != 0.0);
        let count = trained().count();
        let taken: usize = trained().map(|(rows, _)| rows.len()).sum();
        if count > 1 && taken < count * LONG_RUN {
            return self.dw_gathered(at, region, taken, out, write, gathered);
        }
        let dy = self.dy().subcols(at.outputs.start, at.outputs.len());
        let x = self.x().subcols(at.inputs.start, at.inputs.len());
        for (rows, weight) in trained() {
            let dy = dy.subrows(rows.start, rows.len()).transpose();
            par_gemm(out.rb_mut(), write, weight, dy, x.subrows(rows.start, rows.len()));
            write = Write::Add;
        }
        if write == Write::Replace {
            out.fill(0.0);
        }
    }

    /// One product of the `taken` rows that train the region, `dY` scaled on the way.
    fn dw_gathered(
        &self,
        at: &Rect,
        region: usize,
        taken: usize,
        out: MatMut<f32>,
        write: Write,
        gathered: &mut Gathered,
    ) {
        let (outputs, inputs) = (self.shape.outputs(), self.shape.inputs());
        let (height, width) = (at.outputs.len(), at.inputs.len());
        let copies_x = taken < self.rows.total();
        let dy = gathered.dy.grown(taken * height);
        let x = gathered.x.grown(if copies_x { taken * width } else { 0 });
        let mut next = 0;
        for (rows, weight) in runs(self.rows, |n| route(self.options, n, region)) {
            for r in rows.filter(|_| weight != 0.0) {
                let from = &self.inputs.dy[r * outputs..][at.outputs.clone()];
                let to = &mut dy[next * height..(next + 1) * height];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = weight * from);
                if copies_x {
                    let from = &self.inputs.x[r * inputs..][at.inputs.clone()];
                    x[next * width..(next + 1) * width].copy_from_slice(from);
                }
                next += 1;
            }
        }
        let all = self.x().subcols(at.inputs.start, width);
        let x = if copies_x { view(x, taken, width, width) } else { all };
        par_gemm(out, write, 1.0, view(dy, taken, height, height).transpose(), x);
    }

    /// `dx = flow_n · dY_n W`; a flow weight of 0 selects.
    pub(crate) fn dx(&self, weight: &[f32], dx: &mut [f32]) {
        let inputs = self.shape.inputs();
        let spans = self.options.routing.map_or(&[][..], |r| r.layer.regions().input_spans());
        let flow = |n| match spans {
            [] => 1.0,
            [(_, region)] => super::regions::flow(self.options, n, *region),
            _ => 1.0,
        };
        let weight = view(weight, self.shape.outputs(), inputs, inputs);
        let whole = runs(self.rows, flow).count() <= 1;
        let long = self.rows.total() >= LONG_RUN * runs(self.rows, flow).count();
        if !(whole || long) {
            par_product(self.rows_of(dx, 0..self.rows.total()), 1.0, self.dy(), weight);
            return self.scale_dx(dx);
        }
        for (rows, flow) in runs(self.rows, flow) {
            let dy = self.dy().subrows(rows.start, rows.len());
            let mut out = self.rows_of(dx, rows);
            if flow == 0.0 {
                out.fill(0.0);
            } else {
                par_product(out, flow, dy, weight);
            }
        }
        if spans.len() > 1 {
            self.scale_dx(dx);
        }
    }

    fn rows_of<'a>(&self, dx: &'a mut [f32], rows: Range<usize>) -> MatMut<'a, f32> {
        let inputs = self.shape.inputs();
        let part = &mut dx[rows.start * inputs..rows.end * inputs];
        view_mut(part, rows.len(), inputs, inputs)
    }

    fn scale_dx(&self, dx: &mut [f32]) {
        let inputs = self.shape.inputs();
        let Some(routing) = self.options.routing else { return };
        for n in 0..self.rows.samples() {
            for (span, region) in routing.layer.regions().input_spans() {
                let flow = routing.flow(n, *region);
                if flow == 1.0 {
                    continue;
                }
                for r in self.rows.range(n) {
                    let row = &mut dx[r * inputs..][span.clone()];
                    match flow {
                        0.0 => row.fill(0.0),
                        _ => row.iter_mut().for_each(|dx| *dx *= flow),
                    }
                }
            }
        }
    }

    /// Squared norms by Gram matrices, `[N]`.
    pub(crate) fn norms(&self, sq_norm: &mut [f32], threads: &mut Threads) {
        threads.prepare();
        let threads = &*threads;
        let scale = self.options.sample_scale;
        let (outputs, inputs) = (self.shape.outputs(), self.shape.inputs());
        sq_norm.par_iter_mut().enumerate().for_each(|(n, out)| {
            let rows = self.rows.range(n);
            let t = rows.len();
            let squares = if t == 1 {
                let x = &self.inputs.x[rows.start * inputs..rows.end * inputs];
                let dy = &self.inputs.dy[rows.start * outputs..rows.end * outputs];
                flush::square_row(x) * flush::square_row(dy)
            } else {
                let (x, dy) = (self.x().subrows(rows.start, t), self.dy().subrows(rows.start, t));
                gram::square(x, dy, &mut threads.own().panel)
            };
            *out = gram::scaled(squares, scale);
        });
    }

    /// Two-sided sketches without the bias column, `[N, k_o · k_i]`: `S_n = (dY_n P_o)ᵀ (X_n P_i)`.
    pub(crate) fn sketches(
        &self,
        signs: super::formed::Signs,
        sketch: &mut [f32],
        [left, right]: &mut [Vec<f32>; 2],
    ) {
        let total = self.rows.total();
        let (k_o, k_i) = (signs.outputs.ncols(), signs.inputs.ncols());
        let (left, right) = (left.grown(total * k_o), right.grown(total * k_i));
        sketch.fill(0.0);
        let (whole, cut) = (Rect::whole(self.shape), self.sketched());
        for (at, region) in pieces(&whole, self.shape, &cut) {
            let (o, i) = (at.outputs, at.inputs);
            let dy = self.dy().subcols(o.start, o.len());
            let p_o = signs.outputs.subrows(o.start, o.len());
            let x = self.x().subcols(i.start, i.len());
            let p_i = signs.inputs.subrows(i.start, i.len());
            let (u, v) = (view_mut(left, total, k_o, k_o), view_mut(right, total, k_i, k_i));
            rayon::join(|| par_product(u, 1.0, dy, p_o), || par_product(v, 1.0, x, p_i));
            let (left, right) = (view(left, total, k_o, k_o), view(right, total, k_i, k_i));
            self.add_sketches(region, left, right, sketch);
        }
    }

    /// The one region that sketches see, if there are not several.
    pub(crate) fn one_region(&self) -> Option<usize> {
        one_region(&Rect::whole(self.shape), self.shape, &self.sketched())
    }

    /// Adds the sketches of a region's rows, projected to `left [T, k_o]` and `right [T, k_i]`.
    pub(crate) fn add_sketches(
        &self,
        region: usize,
        left: MatRef<f32>,
        right: MatRef<f32>,
        sketch: &mut [f32],
    ) {
        let (k_o, k_i, cut) = (left.ncols(), right.ncols(), self.sketched());
        sketch.par_chunks_exact_mut(k_o * k_i).enumerate().for_each(|(n, sketch)| {
            let (rows, weight) = (self.rows.range(n), route(&cut, n, region));
            if weight == 0.0 || rows.is_empty() {
                return;
            }
            let left = left.subrows(rows.start, rows.len()).transpose();
            let (right, scale) = (right.subrows(rows.start, rows.len()), cut.sample_scale * weight);
            gemm(view_mut(sketch, k_o, k_i, k_i), Write::Add, scale, left, right);
        });
    }

    /// The options that sketches follow: the whole matrix has one weight unless they are routed.
    fn sketched(&self) -> Options<'_> {
        let routing = self.options.routing.filter(|_| self.options.sketch_routed);
        Options { routing, ..*self.options }
    }

    /// Count sketches without the bias column, `[N, K]`, from the rows' outer products, which
    /// are sketched as they arise. `hashes` are the whole matrix's.
    pub(crate) fn counts(&self, hashes: &Hashes, sketch: &mut [f32], threads: &mut Threads) {
        threads.prepare();
        let threads = &*threads;
        let kept = sketch.len() / self.rows.samples().max(1);
        let (whole, cut) = (Rect::whole(self.shape), self.sketched());
        sketch.fill(0.0);
        sketch.par_chunks_exact_mut(kept.max(1)).enumerate().for_each(|(n, sketch)| {
            let scratch = &mut *threads.own();
            scratch.buckets.reset(kept);
            for (at, region) in pieces(&whole, self.shape, &cut) {
                let weight = route(&cut, n, region);
                if weight != 0.0 {
                    self.count_piece(n, &at, weight, hashes, scratch);
                }
            }
            scratch.buckets.fold_into(self.options.sample_scale, sketch);
        });
    }

    fn count_piece(
        &self,
        n: usize,
        at: &Rect,
        weight: f32,
        hashes: &Hashes,
        scratch: &mut Scratch,
    ) {
        let (outputs, inputs) = (self.shape.outputs(), self.shape.inputs());
        let blocks = at.inputs.start / EDGE..at.inputs.end.div_ceil(EDGE);
        let x = scratch.panel.grown(blocks.len() * EDGE);
        // Blocks that reach beyond the piece see zeros there.
        x.fill(0.0);
        let first = at.inputs.start - blocks.start * EDGE;
        for r in self.rows.range(n) {
            let from = &self.inputs.x[r * inputs..][at.inputs.clone()];
            x[first..first + from.len()].copy_from_slice(from);
            for band in at.outputs.start / EDGE..at.outputs.end.div_ceil(EDGE) {
                let dy = std::array::from_fn(|e| match band * EDGE + e {
                    o if at.outputs.contains(&o) => weight * self.inputs.dy[r * outputs + o],
                    _ => 0.0,
                });
                let hashes = &hashes.band(band)[blocks.clone()];
                flush::count_outer(&dy, x, hashes, &mut scratch.buckets);
            }
        }
    }

    /// Each sample's summed `dY`, `[N, O]`.
    pub(crate) fn bias_sums(&self, sums: &mut [f32]) {
        let outputs = self.shape.outputs();
        sums.par_chunks_exact_mut(outputs.max(1)).enumerate().for_each(|(n, sums)| {
            sums.fill(0.0);
            for r in self.rows.range(n) {
                flush::add_scaled(sums, 1.0, &self.inputs.dy[r * outputs..(r + 1) * outputs]);
            }
        });
    }
}

impl super::formed::Form for Operands<'_> {
    fn is_empty(&self, n: usize) -> bool {
        self.rows.range(n).is_empty()
    }

    fn form(&self, n: usize, at: &Rect, out: MatMut<f32>, _: &mut Vec<f32>) {
        let rows = self.rows.range(n);
        let dy = self.dy().submatrix(rows.start, at.outputs.start, rows.len(), at.outputs.len());
        let x = self.x().submatrix(rows.start, at.inputs.start, rows.len(), at.inputs.len());
        // Of a matrix in one piece this is all there is to share, and no other task of this call can
        // start on a thread that waits for its share.
        let whole =
            [at.outputs.len(), at.inputs.len()] == [self.shape.outputs(), self.shape.inputs()];
        let product = if whole { par_gemm } else { gemm };
        product(out, Write::Replace, 1.0, dy.transpose(), x);
    }
}
