//! What the ways of a linear layer's backward pass cost, in multiply-adds of a large matrix product, as
//! measured.

use super::space::{MANY_ROWS, extents};
use super::{BLOCK, PACKED_ROWS, Request, has_avx512};
use crate::problem::Linear;
use crate::projection::SketchKind;

/// Writing an element of a formed tile, reading it, adding it to `dw`.
const TILE: f64 = 7.0;
/// Squaring it as well.
const SQUARE: f64 = 1.0;
/// Count-sketching it.
const COUNT: f64 = 5.0;
/// Count-sketching an element of one row's outer product.
const COUNT_ROW: f64 = 5.0;
/// What a multiply-add for a tile that is not the `whole` matrix takes beyond one of a large product:
/// with AVX-512 that one is twice as fast, and what is copied for a tile's is not.
fn lag(whole: bool, avx512: bool) -> f64 {
    if avx512 && !whole { 0.25 } else { 0.0 }
}
/// A number of a sample's rows, for each of its rows: a Gram matrix forms half of the pairs, at half of
/// a large product's rate.
const GRAM: f64 = 1.0;
/// What a multiply-add for blocks in registers takes beyond one of a large product.
const LAG_BLOCKS: f64 = 0.08;
/// Squaring an element of a block and adding it to `dw`.
const END: f64 = 4.0;
/// Copying a number of a row for them.
const PACK: f64 = 16.0;
/// A multiply-add of a product as narrow as a two-sided sketch.
const NARROW: f64 = 2.0;

/// What records cost beyond a plain `dW`, by each way.
pub(super) struct Costs {
    /// Products of the rows themselves.
    pub(super) factored: f64,
    /// Gradients formed tile by tile.
    pub(super) tiles: f64,
    /// Extents of a tile.
    pub(super) tile: [usize; 2],
    /// Gradients formed block by block in registers; infinite where that is not done.
    pub(super) blocks: f64,
    /// Samples that have rows.
    pub(super) filled: f64,
    /// Whether a two-sided sketch of tiles costs less than one of the rows.
    pub(super) projects_tiles: bool,
    /// The plain products asked for.
    pub(super) plain: f64,
}

impl Costs {
    /// Those of a layer, on a processor with or without AVX-512; `kind` is the projection asked for.
    pub(super) fn new(
        problem: &Linear,
        request: Request,
        kind: Option<SketchKind>,
        avx512: bool,
    ) -> Self {
        let (rows, shape) = (problem.rows(), problem.gradient());
        let each = (0..rows.samples()).map(|n| rows.range(n).len() as f64);
        let (outer, total) = (shape.weights() as f64, rows.total() as f64);
        let filled = each.clone().filter(|rows| *rows > 0.0).count() as f64;
        let tile = extents([shape.outputs(), shape.inputs()], total >= MANY_ROWS * filled, avx512);
        let whole = tile[0] >= shape.outputs() && tile[1] >= shape.inputs();
        let sides = (shape.inputs() + shape.outputs()) as f64;
        let counted = matches!(kind, Some(SketchKind::Count { .. }));

        let gram =
            if request.norms { each.map(|t| t * t).sum::<f64>() * sides * GRAM } else { 0.0 };
        let (by_rows, by_tiles) = match kind {
            Some(SketchKind::TwoSided { outputs, inputs }) => {
                let (o, i) = (shape.outputs() as f64, shape.inputs() as f64);
                let (k_o, k_i) = (outputs as f64, inputs as f64);
                let rows = total * (o * k_o + i * k_i) * NARROW + total * k_o * k_i;
                (rows, filled * (outer + o * k_o) * k_i * NARROW)
            }
            _ => (0.0, 0.0),
        };
        // Forming gradients gives `dW` as well, so without one its product is extra.
        let product = if request.dw { 0.0 } else { total * outer };
        let squares = if request.norms { filled * outer * SQUARE } else { 0.0 };
        let tiles = product + filled * outer * TILE + total * outer * lag(whole, avx512) + squares;
        let (factored, tiles) = if counted {
            (gram + total * outer * COUNT_ROW, tiles + filled * outer * COUNT)
        } else {
            (gram + by_rows, tiles + by_rows.min(by_tiles))
        };
        let in_registers = request.norms && !counted && avx512;
        let blocks = if in_registers && outer > 0.0 && rows.longest() <= PACKED_ROWS {
            let [height, width] = BLOCK.map(|extent| extent as f64);
            let padded = ((shape.outputs() as f64 / height).ceil() * height)
                * ((shape.inputs() as f64 / width).ceil() * width);
            let lag = total * (padded * (1.0 + LAG_BLOCKS) - outer) + filled * padded * END;
            product + lag + total * sides * PACK + by_rows
        } else {
            f64::INFINITY
        };
        let plain = f64::from(u8::from(request.dx) + u8::from(request.dw)).max(1.0);
        let projects_tiles = by_tiles < by_rows;
        let plain = total * outer * plain;
        Self { factored, tiles, tile, blocks, filled, projects_tiles, plain }
    }
}

/// Whether Gram matrices of so many rows a sample cost less than squaring its formed gradient, `sides`
/// being the numbers of a row of both operands.
pub(crate) fn gram_is_cheaper(rows: usize, sides: usize, weights: usize) -> bool {
    let [rows, sides, weights] = [rows, sides, weights].map(|count| count as f64);
    rows * rows * sides * GRAM < weights * (TILE + SQUARE + rows * lag(false, has_avx512()))
}
