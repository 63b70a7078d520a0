//! The formed path: per-sample gradients arise tile by tile in cache-resident scratch, are
//! squared, sketched, scaled and added to `dw` there, and never reach memory as a whole.
//!
//! Whatever can form a tile of one sample's gradient ([`Form`]) gets everything else from here.
//! The matrix is cut into a few cells, the units of parallel work; within a cell the
//! samples pass through tile after tile in order, and the cells' partial norms and sketches are
//! added up in order. The cut depends on shapes alone, so the number of threads changes no bit.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::flush::{self, EDGE};
use super::gemm::{Write, gemm, row_mut, view, view_mut};
use super::gram::scaled;
use super::narrow;
use super::regions::{Rect, pieces, route};
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::Options;
use crate::ops::plan::tiles_per_cell;
use crate::problem::GradientShape;

/// Where per-sample gradients come from.
pub(crate) trait Form: Sync {
    /// Whether sample `n` has no rows, so that its gradient is 0.
    fn is_empty(&self, n: usize) -> bool;

    /// `out = G_n[at]`, `out` shaped as `at`; `panel` is free for operands.
    fn form(&self, n: usize, at: &Rect, out: MatMut<f32>, panel: &mut Vec<f32>);
}

/// Sign matrices `P_o [O, k_o]` and `P_i [columns, k_i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs<'a> {
    pub(crate) outputs: MatRef<'a, f32>,
    pub(crate) inputs: MatRef<'a, f32>,
}

impl Signs<'_> {
    /// Whether products with them have a quick way.
    pub(crate) fn are_narrow(self) -> bool {
        narrow::is_narrow(self.outputs.ncols()) && narrow::is_narrow(self.inputs.ncols())
    }
}

/// What to do with the gradients.
pub(crate) struct Job<'a> {
    pub(crate) shape: GradientShape,
    /// Rows of the matrix this run covers, from a multiple of 8 on.
    pub(crate) outputs: Range<usize>,
    pub(crate) samples: usize,
    pub(crate) options: &'a Options<'a>,
    /// Whether `dw` is overwritten or added to.
    pub(crate) write: Write,
    /// Extents of a tile, multiples of 8.
    pub(crate) tile: [usize; 2],
    /// Whether the tiles are squared.
    pub(crate) norms: bool,
    /// Whether the options' count sketch is taken of the tiles.
    pub(crate) count: bool,
    /// Signs, when the two-sided sketch is taken of the tiles.
    pub(crate) signs: Option<Signs<'a>>,
}

/// Partial results of a cell, kept in the workspace.
#[derive(Debug, Default)]
pub(crate) struct Partials {
    norms: Vec<f64>,
    sketches: Vec<f32>,
}

impl Partials {
    /// So many sums of squares, 0 each.
    pub(crate) fn norms(&mut self, len: usize) -> &mut [f64] {
        self.norms.clear();
        self.norms.resize(len, 0.0);
        &mut self.norms
    }

    /// Sample `n`'s sum over all cells, of so many samples each.
    pub(crate) fn sum(&self, n: usize, samples: usize) -> f64 {
        self.norms.iter().skip(n).step_by(samples).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of::<f64>() * self.norms.capacity() + size_of::<f32>() * self.sketches.capacity()
    }
}

/// `dw [outputs, I] (+)= Σ_n route_n · G_n`; writes `sq_norm [N]` and `sketch [N, K]`, the bias
/// column not included, as the job says. A run that does not begin at the matrix's first row
/// adds to those two.
pub(crate) fn run(
    job: &Job,
    form: &impl Form,
    dw: Option<MatMut<f32>>,
    sq_norm: Option<&mut [f32]>,
    sketch: Option<&mut [f32]>,
    partials: &mut Partials,
    threads: &mut Threads,
) {
    let grid = Grid::new(job);
    let cells = grid.rows * grid.columns;
    partials.norms(cells * job.samples);
    partials.sketches.clear();
    partials.sketches.resize(cells * job.samples * job.sketch_len(), 0.0);
    threads.prepare();
    let walk = Walk { job, form, grid: &grid, threads };
    walk.cells(
        0..grid.rows,
        0..grid.columns,
        Sums { dw, norms: &mut partials.norms, sketches: &mut partials.sketches },
    );
    let (scale, first) = (job.options.sample_scale, job.outputs.start == 0);
    if let Some(sq_norm) = sq_norm {
        for (n, out) in sq_norm.iter_mut().enumerate() {
            let sum = scaled(partials.sum(n, job.samples), scale);
            *out = if first { sum } else { *out + sum };
        }
    }
    if let Some(sketch) = sketch {
        if first {
            sketch.fill(0.0);
        }
        for cell in partials.sketches.chunks_exact(sketch.len().max(1)) {
            sketch.iter_mut().zip(cell).for_each(|(out, part)| *out += part);
        }
    }
}

impl Job<'_> {
    fn sketch_len(&self) -> usize {
        let taken = self.count || self.signs.is_some();
        self.options.sketch.filter(|_| taken).map_or(0, |sketch| sketch.len())
    }
}

/// The cut into cells, each a whole number of tiles but at the edges.
struct Grid {
    rows: usize,
    columns: usize,
    cell: [usize; 2],
    first: [usize; 2],
    end: [usize; 2],
}

impl Grid {
    fn new(job: &Job) -> Self {
        let extents = [job.outputs.len(), job.shape.inputs()];
        let tiles = tiles_per_cell(extents, job.tile);
        let cell = [tiles[0] * job.tile[0], tiles[1] * job.tile[1]];
        let [rows, columns] = [0, 1].map(|side| extents[side].div_ceil(cell[side]));
        let end = [job.outputs.end, job.shape.inputs()];
        Self { rows, columns, cell, first: [job.outputs.start, 0], end }
    }

    fn rect(&self, row: usize, column: usize) -> Rect {
        let side = |at: usize, side: usize| {
            let start = self.first[side] + at * self.cell[side];
            start..(start + self.cell[side]).min(self.end[side])
        };
        Rect { outputs: side(row, 0), inputs: side(column, 1) }
    }
}

/// What some cells add to: their rectangle of `dw`, one row of partial results per cell.
struct Sums<'a> {
    dw: Option<MatMut<'a, f32>>,
    norms: &'a mut [f64],
    sketches: &'a mut [f32],
}

struct Walk<'a, F> {
    job: &'a Job<'a>,
    form: &'a F,
    grid: &'a Grid,
    threads: &'a Threads,
}

impl<F: Form> Walk<'_, F> {
    /// All cells of a rectangle of the grid, halved until one is left.
    fn cells(&self, rows: Range<usize>, columns: Range<usize>, sums: Sums) {
        let cells = rows.len() * columns.len();
        if cells == 0 {
            return;
        }
        if cells == 1 {
            return self.cell(&self.grid.rect(rows.start, columns.start), sums);
        }
        let by_rows = rows.len() > 1;
        let half = |range: &Range<usize>| range.start + range.len() / 2;
        let (first, second) = if by_rows {
            let middle = half(&rows);
            ((rows.start..middle, columns.clone()), (middle..rows.end, columns))
        } else {
            let middle = half(&columns);
            ((rows.clone(), columns.start..middle), (rows, middle..columns.end))
        };
        let share = first.0.len() * first.1.len();
        let (norms0, norms1) = sums.norms.split_at_mut(share * self.job.samples);
        let (sketches0, sketches1) =
            sums.sketches.split_at_mut(share * self.job.samples * self.job.sketch_len());
        let (dw0, dw1) = match sums.dw {
            None => (None, None),
            Some(dw) if by_rows => {
                let (dw0, dw1) = dw.split_at_row_mut(first.0.len() * self.grid.cell[0]);
                (Some(dw0), Some(dw1))
            }
            Some(dw) => {
                let (dw0, dw1) = dw.split_at_col_mut(first.1.len() * self.grid.cell[1]);
                (Some(dw0), Some(dw1))
            }
        };
        rayon::join(
            || self.cells(first.0, first.1, Sums { dw: dw0, norms: norms0, sketches: sketches0 }),
            || self.cells(second.0, second.1, Sums { dw: dw1, norms: norms1, sketches: sketches1 }),
        );
    }

    /// One cell, tile after tile.
    fn cell(&self, cell: &Rect, mut sums: Sums) {
        let scratch = &mut *self.threads.own();
        let [tile_o, tile_i] = self.job.tile;
        for o in cell.outputs.clone().step_by(tile_o) {
            for i in cell.inputs.clone().step_by(tile_i) {
                let at = Rect {
                    outputs: o..(o + tile_o).min(cell.outputs.end),
                    inputs: i..(i + tile_i).min(cell.inputs.end),
                };
                let dw = sums.dw.as_mut().map(|dw| {
                    let (o, i) = (o - cell.outputs.start, i - cell.inputs.start);
                    dw.rb_mut().submatrix_mut(o, i, at.outputs.len(), at.inputs.len())
                });
                self.tile(&at, dw, sums.norms, sums.sketches, scratch);
            }
        }
    }

    /// One tile: every sample in order.
    fn tile(
        &self,
        at: &Rect,
        dw: Option<MatMut<f32>>,
        norms: &mut [f64],
        sketches: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let job = self.job;
        let (rows, columns) = (at.outputs.len(), at.inputs.len());
        let stride = columns.next_multiple_of(EDGE);
        let mut tile = std::mem::take(&mut scratch.tile);
        let values = tile.grown(rows.next_multiple_of(EDGE) * stride);
        // The padding stays 0 while the samples pass through.
        values.fill(0.0);
        let mut total = dw.map(|dw| Total { dw, write: job.write });
        if job.count
            && let Some(sketch) = job.options.sketch
        {
            let origin = [at.outputs.start, at.inputs.start];
            scratch.hashes.set(sketch.key(), sketch.len(), origin, [rows, columns]);
        }
        let kept = job.sketch_len();
        for n in 0..job.samples {
            if self.form.is_empty(n) {
                continue;
            }
            let out = view_mut(values, rows, columns, stride);
            self.form.form(n, at, out, &mut scratch.panel);
            let sketch = &mut sketches[n * kept..(n + 1) * kept];
            norms[n] += self.flush(n, at, values, total.as_mut(), sketch, scratch);
        }
        if let Some(total) = &mut total {
            total.begin();
        }
        scratch.tile = tile;
    }

    fn route(&self, n: usize, region: usize) -> f32 {
        route(self.job.options, n, region)
    }

    /// Takes all that is asked for from sample `n`'s tile; returns the sum of squares.
    fn flush(
        &self,
        n: usize,
        at: &Rect,
        tile: &mut [f32],
        mut total: Option<&mut Total>,
        sketch: &mut [f32],
        scratch: &mut Scratch,
    ) -> f64 {
        let job = self.job;
        let stride = at.inputs.len().next_multiple_of(EDGE);
        let mut uniform = self.uniform(n, at);
        let mut squares = 0.0;
        let mut norms = job.norms;
        if uniform.is_none() && job.options.sketch_routed && !sketch.is_empty() {
            if norms {
                squares = tile.chunks_exact(EDGE * stride).map(flush::square).sum();
                norms = false;
            }
            self.scale(n, at, tile);
            uniform = Some(1.0);
        }
        let routed = if job.options.sketch_routed { uniform.unwrap_or(1.0) } else { 1.0 };
        let counts = job.count && routed != 0.0;
        if counts {
            scratch.buckets.reset(sketch.len());
        }
        for (b, band) in tile.chunks_exact(EDGE * stride).enumerate() {
            squares += match (norms, counts) {
                (false, false) => 0.0,
                (true, false) => flush::square(band),
                (false, true) => {
                    flush::count(band, scratch.hashes.band(b), &mut scratch.buckets);
                    0.0
                }
                (true, true) => {
                    let hashes = scratch.hashes.band(b);
                    flush::count_and_square(band, hashes, &mut scratch.buckets)
                }
            };
            if let (Some(weight), Some(total)) = (uniform, &mut total)
                && weight != 0.0
            {
                total.add_band(b * EDGE, weight, band);
            }
        }
        match (uniform, total) {
            (None, Some(total)) => self.add_pieces(n, at, tile, total),
            (Some(weight), Some(total)) if weight != 0.0 => total.write = Write::Add,
            _ => {}
        }
        let scale = job.options.sample_scale * routed;
        if counts {
            scratch.buckets.fold_into(scale, sketch);
        } else if let Some(signs) = job.signs
            && routed != 0.0
        {
            project(signs, at, tile, scale, sketch, &mut scratch.projected);
        }
        squares
    }

    /// The one weight sample `n` has all over a rectangle, if it is one.
    fn uniform(&self, n: usize, at: &Rect) -> Option<f32> {
        let mut weights =
            pieces(at, self.job.shape, self.job.options).map(|(_, r)| self.route(n, r));
        let first = weights.next()?;
        weights.all(|weight| weight == first).then_some(first)
    }

    /// Applies the weights to the tile itself; 0 selects.
    fn scale(&self, n: usize, at: &Rect, tile: &mut [f32]) {
        let stride = at.inputs.len().next_multiple_of(EDGE);
        for (piece, region) in pieces(at, self.job.shape, self.job.options) {
            let weight = self.route(n, region);
            for o in piece.outputs {
                let start = (o - at.outputs.start) * stride + piece.inputs.start - at.inputs.start;
                let row = &mut tile[start..start + piece.inputs.len()];
                match weight {
                    0.0 => row.fill(0.0),
                    _ => row.iter_mut().for_each(|g| *g *= weight),
                }
            }
        }
    }

    /// Adds each piece of the tile with its own weight.
    fn add_pieces(&self, n: usize, at: &Rect, tile: &[f32], total: &mut Total) {
        total.begin();
        let stride = at.inputs.len().next_multiple_of(EDGE);
        for (piece, region) in pieces(at, self.job.shape, self.job.options) {
            let weight = self.route(n, region);
            if weight == 0.0 {
                continue;
            }
            let (first, last) =
                (piece.inputs.start - at.inputs.start, piece.inputs.end - at.inputs.start);
            for o in piece.outputs {
                let r = o - at.outputs.start;
                let row = &tile[r * stride + first..r * stride + last];
                let out = &mut row_mut(total.dw.rb_mut(), r)[first..last];
                flush::add_scaled(out, weight, row);
            }
        }
    }
}

/// A tile's part of `dw`.
struct Total<'a> {
    dw: MatMut<'a, f32>,
    /// Whether what is there counts.
    write: Write,
}

impl Total<'_> {
    /// Makes what is there count: zeros, if nothing did so far.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.write, Write::Add) == Write::Replace {
            self.dw.fill(0.0);
        }
    }

    /// `(+)= weight · band` for the rows from `first` on.
    fn add_band(&mut self, first: usize, weight: f32, band: &[f32]) {
        let (columns, stride) = (self.dw.ncols(), band.len() / EDGE);
        for (r, row) in (first..self.dw.nrows()).zip(band.chunks_exact(stride)) {
            let out = &mut row_mut(self.dw.rb_mut(), r)[..columns];
            match self.write {
                Write::Replace => out.iter_mut().zip(row).for_each(|(out, g)| *out = weight * g),
                Write::Add => flush::add_scaled(out, weight, row),
            }
        }
    }
}

/// `sketch += scale · P_oᵀ · tile · P_i`.
fn project(
    signs: Signs,
    at: &Rect,
    tile: &[f32],
    scale: f32,
    sketch: &mut [f32],
    projected: &mut Vec<f32>,
) {
    let (rows, columns) = (at.outputs.len(), at.inputs.len());
    let (k_o, k_i) = (signs.outputs.ncols(), signs.inputs.ncols());
    let tile = view(tile, rows, columns, columns.next_multiple_of(EDGE));
    let right = projected.grown(rows * k_i);
    let p_i = signs.inputs.subrows(at.inputs.start, columns);
    narrow::product(view_mut(right, rows, k_i, k_i), 1.0, tile, p_i);
    let p_o = signs.outputs.subrows(at.outputs.start, rows).transpose();
    gemm(view_mut(sketch, k_o, k_i, k_i), Write::Add, scale, p_o, view(right, rows, k_i, k_i));
}
