//! Backward pass of an embedding.
//!
//! The rows of a token within a sample are added up before anything is squared or sketched.
//! Records are taken sample by sample, the table's gradient token by token, so that every
//! task owns what it writes. Time `O(R · (features + log R))`, plus `features` for each distinct
//! token of a sample and number kept by a two-sided sketch.

use std::ops::Range;

use super::column;
use super::flush::add_scaled;
use super::regions::mark_touched;
use super::tasks::{for_block_pairs, for_blocks};
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::{EmbeddingInputs, LayerOutputs, Options, ParamGrad};
use crate::problem::{Element, Embedding};
use crate::projection::{Side, SignMatrix, Sketch, SketchKind, micro_block};

/// Rows of the table that make a task worth its while.
const TOKENS: usize = 64;

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct EmbeddingBuffers {
    order: Vec<usize>,
    signs: Vec<f32>,
}

impl EmbeddingBuffers {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<usize>() * self.order.capacity() + size_of::<f32>() * self.signs.capacity()
    }
}

/// [`crate::ops::Backend::embedding`] on checked arguments.
pub(crate) fn run<T: Element>(
    problem: &Embedding,
    options: &Options,
    inputs: EmbeddingInputs<T>,
    out: LayerOutputs<T>,
    buffers: &mut EmbeddingBuffers,
    threads: &mut Threads,
) {
    let samples = problem.rows().samples();
    if let Some(touched) = out.touched {
        mark_touched(touched, options, samples, |n| problem.rows().range(n).is_empty());
    }
    threads.prepare();
    let batch = Batch { problem, options, inputs, threads };
    buffers.order.clear();
    buffers.order.extend(0..problem.rows().total());
    if out.sq_norm.is_some() || out.sketch.is_some() {
        batch.records(buffers, out.sq_norm, out.sketch);
    }
    let token = |row: &usize| inputs.tokens[*row];
    buffers.order.sort_unstable_by_key(|row| (token(row), *row));
    match out.dw {
        Some(ParamGrad::F32(dw)) => batch.table(&buffers.order, dw),
        Some(ParamGrad::Native(dw)) => batch.table(&buffers.order, dw),
        None => {}
    }
}

struct Batch<'a, T> {
    problem: &'a Embedding,
    options: &'a Options<'a>,
    inputs: EmbeddingInputs<'a, T>,
    threads: &'a Threads,
}

impl<T: Element> Batch<'_, T> {
    /// `sum [features] =` the gradients of these rows added up.
    fn add_up(&self, rows: &[usize], sum: &mut [f32], lost: &mut [f32]) {
        let features = sum.len();
        sum.fill(0.0);
        lost.fill(0.0);
        for &row in rows {
            let dy = &self.inputs.dy[row * features..][..features];
            add_weighted(sum, lost, 1.0, dy);
        }
        settle(sum, lost);
    }

    /// Calls `f(range of features, weight)` for the regions of a token's column.
    fn routes(&self, n: usize, token: usize, mut f: impl FnMut(Range<usize>, f32)) {
        let Some(routing) = self.options.routing else {
            return f(0..self.problem.features(), 1.0);
        };
        for tile in routing.layer.regions().tiles() {
            if tile.inputs.contains(&token) {
                f(tile.outputs.clone(), routing.route(n, tile.region));
            }
        }
    }

    fn records(
        &self,
        buffers: &mut EmbeddingBuffers,
        sq_norm: Option<&mut [f32]>,
        sketch: Option<&mut [f32]>,
    ) {
        let rows = self.problem.rows();
        let token = |row: &usize| self.inputs.tokens[*row];
        for_blocks(
            &mut buffers.order,
            0..rows.samples(),
            &|n| rows.offsets()[n] as usize,
            &|_, order| order.sort_unstable_by_key(|row| (token(row), *row)),
        );
        let projection = self.options.sketch.filter(|_| sketch.is_some());
        if let Some(sketch) = projection {
            self.fill_signs(&sketch, &mut buffers.signs);
        }
        let (order, signs) = (&buffers.order, &buffers.signs);
        let (measure, width) = (sq_norm.is_some(), projection.map_or(0, |sketch| sketch.len()));
        for_block_pairs(
            sq_norm.unwrap_or_default(),
            sketch.unwrap_or_default(),
            0..rows.samples(),
            &|n| if measure { n } else { 0 },
            &|n| n * width,
            &|n, sq_norm, out| self.sample(n, &order[rows.range(n)], signs, sq_norm, out),
        );
    }

    /// `P_o` for a two-sided sketch.
    fn fill_signs(&self, sketch: &Sketch, signs: &mut Vec<f32>) {
        let SketchKind::TwoSided { outputs, .. } = sketch.kind() else { return };
        let features = self.problem.features();
        let signs = signs.grown(features * outputs);
        SignMatrix::new(sketch.key(), Side::Outputs, features, outputs).rows(0, signs);
    }

    /// Records of sample `n`, whose rows come ordered by token.
    fn sample(
        &self,
        n: usize,
        rows: &[usize],
        signs: &[f32],
        sq_norm: &mut [f32],
        out: &mut [f32],
    ) {
        let token = |row: &usize| self.inputs.tokens[*row];
        let mut own = self.threads.own();
        let Scratch { tile, projected, .. } = &mut *own;
        let features = self.problem.features();
        let (sum, lost) = tile.grown(2 * features).split_at_mut(features);
        let mut squares = 0.0;
        out.fill(0.0);
        for rows in rows.chunk_by(|a, b| token(a) == token(b)) {
            let token = token(&rows[0]) as usize;
            self.add_up(rows, sum, lost);
            squares += sum.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            let Some(sketch) = self.options.sketch.filter(|_| !out.is_empty()) else { continue };
            if self.options.sketch_routed {
                self.routes(n, token, |range, weight| weigh(&mut sum[range], weight));
            }
            match sketch.kind() {
                SketchKind::Count { buckets } => count(&sketch, buckets, token, sum, out),
                SketchKind::TwoSided { outputs, inputs } => {
                    let (u, p_i) = projected.grown(outputs + inputs).split_at_mut(outputs);
                    u.fill(0.0);
                    for (g, signs) in sum.iter().zip(signs.chunks_exact(outputs)) {
                        add_scaled(u, *g, signs);
                    }
                    let tokens = self.problem.gradient().inputs();
                    SignMatrix::new(sketch.key(), Side::Inputs, tokens, inputs)
                        .row(token as u32, p_i);
                    for (u, out) in u.iter().zip(out.chunks_exact_mut(inputs)) {
                        add_scaled(out, *u, p_i);
                    }
                }
            }
        }
        let scale = self.options.sample_scale;
        out.iter_mut().for_each(|number| *number *= scale);
        let scale = f64::from(scale) * f64::from(scale);
        sq_norm.iter_mut().for_each(|sq_norm| *sq_norm = (scale * squares) as f32);
    }

    /// `dw [vocabulary, features]`; `order` holds all rows ordered by token, then by row.
    fn table<G: Element>(&self, order: &[usize], dw: &mut [G]) {
        let (vocabulary, features) = (self.problem.vocabulary(), self.problem.features());
        let (options, tokens) = (self.options, self.inputs.tokens);
        for_blocks(
            dw,
            0..vocabulary.div_ceil(TOKENS),
            &|k| (k * TOKENS).min(vocabulary) * features,
            &|k, dw| {
                if !options.accumulate {
                    dw.fill(G::from_f32(0.0));
                }
                let first = k * TOKENS;
                let position =
                    |token: usize| order.partition_point(|&row| (tokens[row] as usize) < token);
                let rows = &order[position(first)..position(first + TOKENS)];
                let mut own = self.threads.own();
                let scratch = own.tile.grown(4 * features);
                for rows in rows.chunk_by(|&a, &b| tokens[a] == tokens[b]) {
                    let token = tokens[rows[0]] as usize;
                    let total = self.weighted(token, rows, scratch);
                    let dw = &mut dw[(token - first) * features..][..features];
                    column::write_to(dw, total, options.accumulate);
                }
            },
        );
    }

    /// `Σ_n route_n ·` the token's gradient in sample `n`.
    fn weighted<'s>(&self, token: usize, mut rows: &[usize], scratch: &'s mut [f32]) -> &'s [f32] {
        let (totals, sums) = scratch.split_at_mut(2 * self.problem.features());
        let (total, total_lost) = totals.split_at_mut(self.problem.features());
        let (sum, lost) = sums.split_at_mut(self.problem.features());
        total.fill(0.0);
        total_lost.fill(0.0);
        while let Some(&first) = rows.first() {
            let offsets = self.problem.rows().offsets();
            let n = offsets.partition_point(|&offset| offset <= first as u64) - 1;
            let count = rows.partition_point(|&row| (row as u64) < offsets[n + 1]);
            let mut added_up = false;
            self.routes(n, token, |range, weight| {
                if weight == 0.0 {
                    return;
                }
                if !added_up {
                    self.add_up(&rows[..count], sum, lost);
                    added_up = true;
                }
                let total = &mut total[range.clone()];
                add_weighted(total, &mut total_lost[range.clone()], weight, &sum[range]);
            });
            rows = &rows[count..];
        }
        settle(total, total_lost);
        total
    }
}

/// `sum += weight · terms`; what each addition rounds away goes to `lost` (Knuth's two-sum), so
/// that terms which cancel leave the right remainder.
fn add_weighted<T: Element>(sum: &mut [f32], lost: &mut [f32], weight: f32, terms: &[T]) {
    for ((sum, lost), term) in sum.iter_mut().zip(lost).zip(terms) {
        let (before, term) = (*sum, weight * term.to_f32());
        *sum = before + term;
        let taken = *sum - before;
        *lost += (before - (*sum - taken)) + (term - taken);
    }
}

/// `sum += lost`, but for a sum that left the finite numbers.
fn settle(sum: &mut [f32], lost: &[f32]) {
    for (sum, lost) in sum.iter_mut().zip(lost) {
        *sum += if lost.is_finite() { *lost } else { 0.0 };
    }
}

/// A weight of 0 selects.
fn weigh(values: &mut [f32], weight: f32) {
    if weight == 0.0 {
        values.fill(0.0);
    } else {
        values.iter_mut().for_each(|value| *value *= weight);
    }
}

/// Adds column `token` of the gradient matrix to a count sketch.
fn count(sketch: &Sketch, buckets: usize, token: usize, column: &[f32], out: &mut [f32]) {
    for (block, column) in column.chunks(8).enumerate() {
        let hash = micro_block(sketch.key(), block as u32, (token / 8) as u32, buckets);
        for (o, g) in column.iter().enumerate() {
            let e = 8 * o + token % 8;
            out[hash.bucket(e, buckets)] += hash.sign(e) * g;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, for_all_options, integers};
    use crate::ops::{Backend, EmbeddingInputs};
    use crate::problem::{Embedding, Rows};
    use crate::reference;

    #[test]
    fn integer_inputs_match_the_reference_bit_for_bit() {
        for (offsets, vocabulary, features) in
            [(vec![0, 9, 9, 10, 40], 11, 10), (vec![0, 30, 300], 150, 3), (vec![0], 4, 4)]
        {
            let rows = Rows::new(offsets).unwrap();
            let table = Embedding::new(rows.clone(), vocabulary, features).unwrap();
            let shape = table.gradient();
            let dy = integers(rows.total() * features, 2);
            let token = |r: usize| (r * r % 7 * 31 % vocabulary) as u32;
            let tokens: Vec<u32> = (0..rows.total()).map(token).collect();
            let inputs = EmbeddingInputs { tokens: &tokens, dy: &dy };
            for_all_options(shape, rows.samples(), |options| {
                let expected = reference::embedding(&table, options, inputs).unwrap();
                let mut buffers = Buffers::new(shape, rows.samples(), 0, options);
                let (_, out) = buffers.split(false);
                Cpu::new().embedding(&table, options, inputs, out).unwrap();
                buffers.check(&expected, 0.0, &format!("{table:?} {options:?}"));
            });
        }
    }
}
