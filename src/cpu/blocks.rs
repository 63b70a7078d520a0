//! The formed path in registers: blocks of per-sample gradients of a linear layer are squared, weighted
//! and added to the others' sum where they arise, and none is ever stored.
//!
//! A tile of [`super::formed`] is written, read to be squared and read again to be added; what that
//! takes does not shrink with a sample's rows, while the product does. Here a block of a few rows times a
//! few vectors of `dw` stays in registers while all rows of a sample pass, as in a matrix product
//! whose inner dimension ends where the sample does: the micro-kernel is a GEMM's, its end is ours. Both
//! operands are packed ([`super::packed`]) once per call.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::factored::Operands;
use super::flush;
use super::formed::{Partials, Signs};
use super::gemm::Write;
use super::gram::scaled;
use super::packed::{Group, Lines, Packed, groups_of, pack};
use super::regions::{Rect, one_region, pieces, route};
use super::tasks::for_block_pairs;
use super::workspace::Threads;
use crate::ops::plan::{BAND, BLOCK, PACKED_ROWS, STRIPS};

/// Rows that pass through a block before the next one, so that a strip of theirs, 32 KiB, stays in the
/// first-level cache, 48 KiB where there is AVX-512; more if a sample has more.
const TOGETHER: usize = 256;

/// Products of the rows with the two-sided sketch's signs, taken while the rows are at hand.
pub(crate) struct Projection<'a> {
    pub(crate) signs: Signs<'a>,
    /// `dY P_o [T, k_o]`.
    pub(crate) left: &'a mut [f32],
    /// `X P_i [T, k_i]`.
    pub(crate) right: &'a mut [f32],
}

/// What is kept from call to call.
pub(crate) struct Buffers<'a> {
    pub(crate) packed: &'a mut Packed,
    pub(crate) partials: &'a mut Partials,
    pub(crate) threads: &'a mut Threads,
}

/// `sq_norm [N]`, `dw [O, I] (+)= Σ_n route_n · G_n` where asked for, and the rows' projections, of a
/// matrix that is not empty.
pub(crate) fn run(
    operands: &Operands,
    mut write: Write,
    mut dw: Option<&mut [f32]>,
    sq_norm: &mut [f32],
    projection: Option<Projection>,
    buffers: Buffers,
) {
    let (samples, shape) = (operands.rows.samples(), operands.shape);
    debug_assert!(shape.weights() > 0, "the planner takes other ways then");
    let [height, width] = pulp::Arch::new().dispatch(Extents);
    let blocks = shape.outputs().div_ceil(height);
    let Buffers { packed: Packed { x, dy, groups }, partials, threads } = buffers;
    // By blocks, so that how these are shared out changes no bit.
    let squares = partials.norms(blocks * samples);
    threads.prepare();
    let (mut left, mut right) = match projection {
        Some(Projection { signs, left, right }) => {
            (Some((signs.outputs, left)), Some((signs.inputs, right)))
        }
        None => (None, None),
    };
    for Group { members, .. } in groups_of(operands, 0..samples, PACKED_ROWS) {
        groups.clear();
        groups.extend(groups_of(operands, members, TOGETHER));
        let rows = groups.last().map_or(0, Group::end);
        let x = x.grown(shape.inputs().next_multiple_of(width) * rows);
        let dy = dy.grown(blocks * height * rows);
        let left = left.as_mut().map(|(signs, products)| (*signs, &mut **products));
        let right = right.as_mut().map(|(signs, products)| (*signs, &mut **products));
        rayon::join(
            || pack([shape.inputs(), width], groups, operands.inputs.x, x, right),
            || pack([shape.outputs(), height], groups, operands.inputs.dy, dy, left),
        );
        let pass = Pass { operands, groups, x, dy, write, height };
        pass.share(blocks, dw.as_deref_mut(), squares, threads);
        write = Write::Add;
    }
    if let (Write::Replace, Some(dw)) = (write, dw) {
        dw.fill(0.0);
    }
    for (n, out) in sq_norm.iter_mut().enumerate() {
        *out = scaled(partials.sum(n, samples), operands.options.sample_scale);
    }
}

/// Rows and columns of a block.
struct Extents;

impl WithSimd for Extents {
    type Output = [usize; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> [usize; 2] {
        [rows_of_block::<S>(), 2 * S::F32_LANES]
    }
}

/// As many as there are registers for, beside two vectors of a row of `x` and a number of `dY`.
const fn rows_of_block<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { BLOCK[0] } else { 6 }
}

/// Some samples, packed.
struct Pass<'a> {
    operands: &'a Operands<'a>,
    groups: &'a [Group],
    x: &'a [f32],
    dy: &'a [f32],
    write: Write,
    /// Rows of a block.
    height: usize,
}

impl Pass<'_> {
    /// All blocks, on all threads of the current rayon pool.
    fn share(&self, blocks: usize, dw: Option<&mut [f32]>, squares: &mut [f64], threads: &Threads) {
        let shape = self.operands.shape;
        let (samples, inputs) = (self.operands.rows.samples(), shape.inputs());
        // As many for each thread.
        let tasks = shape.outputs().div_ceil(BAND).next_multiple_of(rayon::current_num_threads());
        let each = blocks.div_ceil(tasks);
        let first = |task: usize| (task * each).min(blocks);
        let is_summed = dw.is_some();
        let row = |task: usize| match is_summed {
            true => (first(task) * self.height).min(shape.outputs()) * inputs,
            false => 0,
        };
        let square = |task: usize| first(task) * samples;
        let work = |task: usize, dw: &mut [f32], squares: &mut [f64]| {
            let mut own = threads.own();
            let (blocks, sums) = (first(task)..first(task + 1), &mut own.sums);
            pulp::Arch::new().dispatch(Band { pass: self, blocks, dw, squares, sums });
        };
        let tasks = 0..blocks.div_ceil(each);
        for_block_pairs(dw.unwrap_or_default(), squares, tasks, &row, &square, &work);
    }
}

/// Some rows of blocks: their part of `dw`, if that is asked for, and of the sums of squares.
struct Band<'a> {
    pass: &'a Pass<'a>,
    blocks: Range<usize>,
    dw: &'a mut [f32],
    squares: &'a mut [f64],
    sums: &'a mut Lines,
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match rows_of_block::<S>() {
            6 => self.stretches::<S, 6>(simd),
            _ => self.stretches::<S, { BLOCK[0] }>(simd),
        }
    }
}

impl Band<'_> {
    /// Stretch after stretch of the columns, of each strip after strip.
    #[inline(always)]
    fn stretches<S: Simd, const R: usize>(self, simd: S) {
        let Self { pass, blocks, dw, squares, sums } = self;
        let (inputs, width) = (pass.operands.shape.inputs(), 2 * S::F32_LANES);
        let stretch = STRIPS * width;
        let mut sums = (!dw.is_empty()).then(|| sums.grown(blocks.len() * R * stretch));
        for start in (0..inputs).step_by(stretch) {
            let end = inputs.min(start + stretch);
            if let Some(sums) = &mut sums {
                sums.fill(0.0);
            }
            for from in (start..end).step_by(width) {
                let columns = from..end.min(from + width);
                let sums = sums.as_mut().map(|sums| &mut sums[from - start..]);
                pass.strip::<S, R>(simd, blocks.clone(), &columns, sums, squares);
            }
            if let Some(sums) = &sums {
                let rows = dw.chunks_exact_mut(inputs).map(|row| &mut row[start..end]);
                add_stretch(simd, pass.write, sums, rows);
            }
        }
    }
}

impl Pass<'_> {
    /// A strip of the columns: group after group, of each block after block.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(
        &self,
        simd: S,
        blocks: Range<usize>,
        columns: &Range<usize>,
        mut sums: Option<&mut [f32]>,
        squares: &mut [f64],
    ) {
        let Operands { rows, shape, .. } = *self.operands;
        let (width, one) = (2 * S::F32_LANES, R * STRIPS * 2 * S::F32_LANES);
        let (all, padded) = (shape.outputs().div_ceil(R), shape.inputs().next_multiple_of(width));
        for group in self.groups {
            let (before, height) = (group.before, group.height());
            let x = &self.x[before * padded + columns.start * height..][..height * width];
            let dy = &self.dy[before * all * R..][..height * all * R];
            let own = squares.chunks_exact_mut(rows.samples());
            for ((i, b), squares) in blocks.clone().enumerate().zip(own) {
                let outputs = b * R..((b + 1) * R).min(shape.outputs());
                let at = Rect { outputs, inputs: columns.clone() };
                let dy = &dy[b * height * R..][..height * R];
                let block = Block { operands: self.operands, group, at, x, dy };
                let sums = sums.as_mut().map(|sums| &mut sums[i * one..]);
                block.add::<S, R>(simd, sums, squares);
            }
        }
    }
}

/// `dw (+)= sums`, both given by rows of a stretch.
#[inline(always)]
fn add_stretch<'a, S: Simd>(
    simd: S,
    write: Write,
    sums: &[f32],
    dw: impl Iterator<Item = &'a mut [f32]>,
) {
    for (dw, sums) in dw.zip(sums.chunks_exact(STRIPS * 2 * S::F32_LANES)) {
        let (to, rest) = S::as_mut_simd_f32s(dw);
        let (from, _) = S::as_simd_f32s(sums);
        let left = &sums[to.len() * S::F32_LANES..];
        if write == Write::Replace {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            rest.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        } else {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = simd.add_f32s(*to, *from));
            rest.iter_mut().zip(left).for_each(|(to, from)| *to += from);
        }
    }
}

/// A block of `R` rows times two vectors, and what a group's gradients are made of there.
struct Block<'a> {
    operands: &'a Operands<'a>,
    group: &'a Group,
    /// What of it lies in the matrix.
    at: Rect,
    /// `[rows, 2 vectors]`.
    x: &'a [f32],
    /// `[rows, R]`.
    dy: &'a [f32],
}

impl Block<'_> {
    /// `sums [R, 2 vectors] += Σ_n route_n · G_n` in rows of a stretch, if that is asked for; adds to
    /// each sample's sum of squares. What lies beyond the matrix is 0 and adds nothing.
    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        &self,
        simd: S,
        mut sums: Option<&mut [f32]>,
        squares: &mut [f64],
    ) {
        let Self { operands, group, at, x, dy } = self;
        let width = 2 * S::F32_LANES;
        let region = one_region(at, operands.shape, operands.options);
        for n in group.members.clone() {
            let rows = operands.rows.range(n);
            let rows = rows.start - group.rows.start..rows.end - group.rows.start;
            if rows.is_empty() {
                continue;
            }
            let x = &x[rows.start * width..rows.end * width];
            let gradient = form::<S, R>(simd, &dy[rows.start * R..rows.end * R], x);
            squares[n] += f64::from(square(simd, &gradient));
            match (&mut sums, region) {
                (None, _) => {}
                (Some(sums), None) => self.add_pieces::<S, R>(n, gradient, sums),
                (Some(sums), Some(region)) => match route(operands.options, n, region) {
                    0.0 => {}
                    weight => add_scaled(simd, weight, &gradient, sums),
                },
            }
        }
    }

    /// At the border of a region: adds each piece with its own weight.
    fn add_pieces<S: Simd, const R: usize>(
        &self,
        n: usize,
        // Not borrowed: what is would be kept in memory while it is formed.
        gradient: [[S::f32s; 2]; R],
        sums: &mut [f32],
    ) {
        let (at, Operands { shape, options, .. }) = (&self.at, *self.operands);
        let (width, stretch) = (2 * S::F32_LANES, STRIPS * 2 * S::F32_LANES);
        let rows: &[f32] = bytemuck::cast_slice(gradient.as_flattened());
        for (piece, region) in pieces(at, shape, options) {
            let weight = route(options, n, region);
            if weight == 0.0 {
                continue;
            }
            let first = piece.inputs.start - at.inputs.start;
            for o in piece.outputs {
                let r = o - at.outputs.start;
                let sums = &mut sums[r * stretch + first..][..piece.inputs.len()];
                flush::add_scaled(sums, weight, &rows[r * width + first..][..sums.len()]);
            }
        }
    }
}

/// A block of one sample's gradient from packed rows `dy [T, R]` and `x [T, 2 vectors]`.
///
/// In loops over indices: what closures compute here would leave the registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn form<S: Simd, const R: usize>(simd: S, dy: &[f32], x: &[f32]) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    let (dy, _) = dy.as_chunks::<R>();
    let (x, _) = S::as_simd_f32s(x);
    let (x, _) = x.as_chunks::<2>();
    for (dy, x) in dy.iter().zip(x) {
        let [x0, x1] = *x;
        for r in 0..R {
            let dy = simd.splat_f32s(dy[r]);
            sums[r][0] = simd.mul_add_f32s(dy, x0, sums[r][0]);
            sums[r][1] = simd.mul_add_f32s(dy, x1, sums[r][1]);
        }
    }
    sums
}

/// The sum of squares of a block.
#[inline(always)]
fn square<S: Simd, const R: usize>(simd: S, block: &[[S::f32s; 2]; R]) -> f32 {
    let mut sums = [simd.splat_f32s(0.0); 2];
    for row in block {
        sums = [0, 1].map(|v| simd.mul_add_f32s(row[v], row[v], sums[v]));
    }
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]))
}

/// `sums += weight · block`, in rows of a stretch.
#[inline(always)]
fn add_scaled<S: Simd, const R: usize>(
    simd: S,
    weight: f32,
    block: &[[S::f32s; 2]; R],
    sums: &mut [f32],
) {
    let weight = simd.splat_f32s(weight);
    let (sums, _) = S::as_mut_simd_f32s(sums);
    for (sums, own) in sums.chunks_mut(STRIPS * 2).zip(block) {
        sums[0] = simd.mul_add_f32s(weight, own[0], sums[0]);
        sums[1] = simd.mul_add_f32s(weight, own[1], sums[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{view, view_mut};
    use crate::cpu::narrow;
    use crate::cpu::testing::{for_all_options, integers, noise};
    use crate::ops::{LinearInputs, Options, Routing};
    use crate::problem::{Linear, Rows};
    use crate::reference;
    use crate::routing::{LayerRouting, RegionMap};
    use faer::MatRef;

    /// Samples of no row and of one, more rows than a group and than a copy hold.
    fn batches() -> [Rows; 4] {
        [
            Rows::new([0, 0, 0]).unwrap(),
            Rows::new([0, 0, 3, 3, 4, 9, 9]).unwrap(),
            Rows::new([0, 200, 201, 300, 1250]).unwrap(),
            Rows::uniform(9, 77).unwrap(),
        ]
    }

    /// Calls `test` with layers that end within blocks and at their edges, one wider than a stretch, and
    /// all options.
    fn for_layers(numbers: fn(usize, u32) -> Vec<f32>, mut test: impl FnMut(&Operands, &Linear)) {
        for rows in batches() {
            for (inputs, outputs) in [(1, 1), (33, 13), (70, 45), (64, 28), (300, 15)] {
                let problem = Linear::new(rows.clone(), inputs, outputs).unwrap();
                let x = numbers(rows.total() * inputs, 1);
                let dy = numbers(rows.total() * outputs, 2);
                for_all_options(problem.gradient(), rows.samples(), |options| {
                    let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
                    let (rows, shape) = (&rows, problem.gradient());
                    test(&Operands { rows, shape, options, inputs }, &problem);
                });
            }
        }
    }

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// `dw` overwritten and then added to, and the norms of either call.
    fn twice(operands: &Operands, threads: usize) -> (Vec<f32>, [Vec<f32>; 3]) {
        let pool = pool(threads);
        let (mut packed, mut partials, mut scratch) = Default::default();
        let mut dw = vec![f32::NAN; operands.shape.weights()];
        let mut call = |write, dw: Option<&mut [f32]>| {
            let mut norms = vec![f32::NAN; operands.rows.samples()];
            let (packed, partials, threads) = (&mut packed, &mut partials, &mut scratch);
            let buffers = Buffers { packed, partials, threads };
            pool.install(|| run(operands, write, dw, &mut norms, None, buffers));
            norms
        };
        let replaced = call(Write::Replace, Some(&mut dw));
        let added = call(Write::Add, Some(&mut dw));
        let norms = [replaced, added, call(Write::Add, None)];
        (dw, norms)
    }

    #[test]
    fn integers_match_the_reference_bit_for_bit() {
        for_layers(integers, |operands, problem| {
            let (options, inputs) = (operands.options, operands.inputs);
            let expected = reference::linear(problem, options, inputs).unwrap();
            let (dw, norms) = twice(operands, 1);
            let what = format!("{problem:?} {options:?}");
            assert!(dw.iter().zip(&expected.dw).all(|(g, e)| f64::from(*g) == 2.0 * e), "{what}");
            for norms in norms {
                let near = |(g, e): (&f32, &f64)| (f64::from(*g) - e).abs() <= 1e-6 * e;
                assert!(norms.iter().zip(&expected.sq_norm).all(near), "{what}");
            }
        });
    }

    #[test]
    fn threads_leave_no_trace() {
        for_layers(noise, |operands, problem| {
            let one = twice(operands, 1);
            assert!(one == twice(operands, 3), "{problem:?}");
        });
    }

    #[test]
    fn rows_are_projected_on_the_way() {
        let (k_o, k_i) = (16, 5);
        for_layers(integers, |operands, problem| {
            let (shape, total) = (operands.shape, operands.rows.total());
            let (p_o, p_i) =
                (integers(shape.outputs() * k_o, 3), integers(shape.inputs() * k_i, 4));
            let signs = Signs {
                outputs: view(&p_o, shape.outputs(), k_o, k_o),
                inputs: view(&p_i, shape.inputs(), k_i, k_i),
            };
            let product = |rows, signs: MatRef<f32>| {
                let (columns, k) = (signs.nrows(), signs.ncols());
                let mut out = vec![f32::NAN; total * k];
                let rows = view(rows, total, columns, columns);
                narrow::product(view_mut(&mut out, total, k, k), 1.0, rows, signs);
                out
            };
            let expected = [
                product(operands.inputs.dy, signs.outputs),
                product(operands.inputs.x, signs.inputs),
            ];
            for threads in [1, 3] {
                let [mut left, mut right] = expected.each_ref().map(|e| vec![f32::NAN; e.len()]);
                let projection = Projection { signs, left: &mut left, right: &mut right };
                let (mut packed, mut partials, mut scratch) = Default::default();
                let (packed, partials, scratch) = (&mut packed, &mut partials, &mut scratch);
                let buffers = Buffers { packed, partials, threads: scratch };
                let mut norms = vec![0.0; operands.rows.samples()];
                pool(threads).install(|| {
                    run(operands, Write::Add, None, &mut norms, Some(projection), buffers);
                });
                assert!([left, right] == expected, "{problem:?} on {threads}");
            }
        });
    }

    #[test]
    fn what_is_routed_away_is_not_read() {
        let (rows, inputs, outputs) = (Rows::uniform(3, 20).unwrap(), 40, 30);
        let layer = LayerRouting::open(RegionMap::whole(outputs, inputs), 1);
        let routing = Routing { layer: &layer, categories: &[0; 3], gates: Some(&[1.0, 0.0, 1.0]) };
        let options = Options { routing: Some(routing), ..Options::default() };
        let (mut x, dy) = (integers(60 * inputs, 1), integers(60 * outputs, 2));
        let shape = Linear::new(rows.clone(), inputs, outputs).unwrap().gradient();
        let dw = |x: &[f32]| {
            let inputs = LinearInputs { x, dy: &dy, weight: None };
            twice(&Operands { rows: &rows, shape, options: &options, inputs }, 1)
        };
        let (expected, _) = dw(&x);
        x[20 * inputs..40 * inputs].fill(f32::NAN);
        let (found, [norms, ..]) = dw(&x);
        assert_eq!(found, expected);
        assert!(norms[0] > 0.0 && norms[1].is_nan() && norms[2] > 0.0);
    }

    /// `dw` and the norms by blocks of `R` rows and vectors of `S`, all in one task.
    fn by<S: Simd, const R: usize>(simd: S, operands: &Operands) -> (Vec<f32>, Vec<f32>) {
        let (shape, samples) = (operands.shape, operands.rows.samples());
        let groups: Vec<Group> = groups_of(operands, 0..samples, TOGETHER).collect();
        let (rows, width) = (groups.last().map_or(0, Group::end), 2 * S::F32_LANES);
        let mut lines: [Lines; 3] = Default::default();
        let [x, dy, sums] = &mut lines;
        let x = x.grown(shape.inputs().next_multiple_of(width) * rows);
        let dy = dy.grown(shape.outputs().next_multiple_of(R) * rows);
        pack([shape.inputs(), width], &groups, operands.inputs.x, x, None);
        pack([shape.outputs(), R], &groups, operands.inputs.dy, dy, None);
        let blocks = 0..shape.outputs().div_ceil(R);
        let mut dw = vec![0.0; shape.weights()];
        let mut squares = vec![0.0; blocks.len() * samples];
        let pass = Pass { operands, groups: &groups, x, dy, write: Write::Add, height: R };
        let band = Band { pass: &pass, blocks, dw: &mut dw, squares: &mut squares, sums };
        band.stretches::<S, R>(simd);
        let norm = |n| squares.iter().skip(n).step_by(samples).sum::<f64>();
        let scale = operands.options.sample_scale;
        (dw, (0..samples).map(|n| scaled(norm(n), scale)).collect())
    }

    #[test]
    fn every_width_of_vectors_gives_the_same() {
        for_layers(integers, |operands, problem| {
            let (dw, [norms, ..]) = twice(operands, 1);
            let single: Vec<f32> = dw.iter().map(|dw| dw / 2.0).collect();
            for (dw, found) in [
                by::<_, 6>(pulp::Scalar, operands),
                by::<_, 6>(pulp::Scalar128b, operands),
                by::<_, 14>(pulp::Scalar256b, operands),
                by::<_, 14>(pulp::Scalar512b, operands),
            ] {
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b;
                assert!(dw == single, "{problem:?}");
                assert!(found.iter().zip(&norms).all(near), "{problem:?}");
            }
        });
    }
}
