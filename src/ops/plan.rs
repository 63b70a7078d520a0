//! How a linear layer's backward pass will be computed: a function of shapes, wishes, and whether the
//! processor has AVX-512.
//!
//! ```
//! use gradroute::ops::plan::{Path, Request, plan_linear};
//! use gradroute::problem::{Linear, Rows};
//! use gradroute::projection::Sketch;
//!
//! let many = Linear::new(Rows::uniform(8, 1024)?, 320, 320)?;
//! let count = Sketch::count(256, 0, 0)?;
//! let plan = plan_linear(&many, Request::everything(), Some(count.kind()));
//! assert_eq!(plan.path, Path::Formed);
//! println!("{plan}");
//! # Ok::<(), gradroute::Error>(())
//! ```

use std::fmt;

use super::LayerOutputs;
use crate::problem::{GradientShape, Linear, Rows};
use crate::projection::SketchKind;

/// Edge of a micro-block of the count sketch, which tiles do not cut.
const EDGE: usize = 8;

/// Which outputs are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// The input's gradient.
    pub dx: bool,
    /// The weight's gradient.
    pub dw: bool,
    /// The bias' gradient.
    pub db: bool,
    /// Squared norms of the weight gradients.
    pub norms: bool,
    /// Sketches.
    pub sketch: bool,
}

impl Request {
    /// Every output.
    pub fn everything() -> Self {
        Self { dx: true, dw: true, db: true, norms: true, sketch: true }
    }

    /// What a call with these outputs asks for.
    pub fn of<T>(dx: bool, out: &LayerOutputs<T>) -> Self {
        Self {
            dx,
            dw: out.dw.is_some(),
            db: out.db.is_some(),
            norms: out.sq_norm.is_some(),
            sketch: out.sketch.is_some(),
        }
    }
}

/// Whether per-sample gradients come into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Tile by tile, in cache-resident scratch.
    Formed,
    /// Never: products of the rows themselves give everything.
    Factored,
}

/// Where squared norms come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norms {
    /// Squares of the formed tiles.
    Tiles,
    /// Squares of blocks that are formed in registers and added to `dW` there.
    Blocks,
    /// `Σ_{t,t'} (x_t · x_t')(dy_t · dy_t')`; for one row `‖x‖² ‖dy‖²`. Where a sample's rows cancel
    /// to a fraction of `Σ_t ‖x_t‖ ‖dy_t‖`, rounding weighs by that fraction's square, in tiles by
    /// the fraction itself.
    Gram,
}

/// Where sketches come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sketching {
    /// Count sketch of the formed tiles.
    CountTiles,
    /// Count sketch of each row's outer product, as it arises.
    CountRows,
    /// `P_oᵀ · tile · P_i` of the formed tiles.
    ProjectTiles,
    /// `(dY P_o)ᵀ (X P_i)`.
    ProjectRows,
}

/// How a call is computed; `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Whether gradients are formed.
    pub path: Path,
    /// Where the norms come from, when asked for.
    pub norms: Option<Norms>,
    /// Where the sketches come from, when asked for.
    pub sketch: Option<Sketching>,
    /// Extents of a formed tile.
    pub tile: [usize; 2],
    /// Estimated time of the records over that of the plain products asked for, `dX` and `dW`.
    pub extra: f64,
    /// About the bytes of workspace for `f32` buffers, on one thread and unrouted, besides what
    /// the GEMM library keeps per thread.
    pub workspace_bytes: usize,
    /// Mean rows per sample.
    pub rows: f64,
}

/// Rows per sample up to which a count sketch costs about as much as the outer products.
const FEW_ROWS: f64 = 16.0;

impl Plan {
    /// Why this path.
    pub fn reason(&self) -> &'static str {
        match (self.path, self.sketch, self.norms) {
            (Path::Formed, Some(Sketching::CountTiles), _) => {
                "a count sketch needs every element of the gradient"
            }
            (Path::Formed, _, Some(Norms::Blocks)) => {
                "with this many rows per sample blocks of gradients in registers cost less than \
                 products of rows, and less than tiles"
            }
            (Path::Formed, ..) => {
                "with this many rows per sample a pass over the formed tiles costs less than \
                 products of rows"
            }
            (Path::Factored, Some(Sketching::CountRows), _) => {
                "with this few rows per sample their outer products are sketched one by one"
            }
            (Path::Factored, None, None) => "nothing is recorded, so dW is one product",
            (Path::Factored, ..) => {
                "with this few rows per sample products of rows cost less than forming gradients"
            }
        }
    }

    /// What the caller should know.
    pub fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        let counts = matches!(self.sketch, Some(Sketching::CountTiles | Sketching::CountRows));
        if counts && self.rows <= FEW_ROWS {
            notes.push(
                "a count sketch of few rows costs as much as forming their outer products; the \
                 two-sided sketch has a factored form",
            );
        }
        notes
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.path {
            Path::Formed if self.norms == Some(Norms::Blocks) => "formed in registers".into(),
            Path::Formed => format!("formed in tiles of {} × {}", self.tile[0], self.tile[1]),
            Path::Factored => "factored".into(),
        };
        write!(f, "{path}: {}", self.reason())?;
        match self.norms {
            Some(Norms::Tiles) => write!(f, "; norms from the tiles")?,
            Some(Norms::Blocks) => write!(f, "; norms from the blocks")?,
            Some(Norms::Gram) => write!(f, "; norms from Gram matrices")?,
            None => {}
        }
        match self.sketch {
            Some(Sketching::CountTiles) => write!(f, "; count sketch of the tiles")?,
            Some(Sketching::CountRows) => write!(f, "; count sketch of the rows' products")?,
            Some(Sketching::ProjectTiles) => write!(f, "; two-sided sketch of the tiles")?,
            Some(Sketching::ProjectRows) => write!(f, "; two-sided sketch of the rows")?,
            None => {}
        }
        write!(f, "; about {:.0} % over the plain pass", 100.0 * self.extra)?;
        write!(f, ", {} KiB of workspace", self.workspace_bytes.div_ceil(1024))?;
        self.notes().iter().try_for_each(|note| write!(f, "\nnote: {note}"))
    }
}

/// Costs in multiply-adds of a large matrix product, as measured.
mod cost {
    /// Writing an element of a formed tile, reading it, adding it to `dw`.
    pub(super) const TILE: f64 = 7.0;
    /// What a multiply-add for a tile takes beyond one of a large product: with AVX-512 that one is
    /// twice as fast, and what is copied for a tile's is not.
    pub(super) fn lag(avx512: bool) -> f64 {
        if avx512 { 0.25 } else { 0.0 }
    }
    /// A number of a sample's rows, for each of its rows: a Gram matrix forms half of the pairs, at half of
    /// a large product's rate.
    pub(super) const GRAM: f64 = 1.0;
    /// Squaring it as well.
    pub(super) const SQUARE: f64 = 1.0;
    /// Count-sketching it.
    pub(super) const COUNT: f64 = 5.0;
    /// Count-sketching an element of one row's outer product.
    pub(super) const COUNT_ROW: f64 = 5.0;
    /// What a multiply-add for blocks in registers takes beyond one of a large product.
    pub(super) const LAG_BLOCKS: f64 = 0.08;
    /// Squaring an element of a block and adding it to `dw`.
    pub(super) const BLOCK: f64 = 4.0;
    /// Copying a number of a row for them.
    pub(super) const PACK: f64 = 16.0;
    /// A multiply-add of a product as narrow as a two-sided sketch.
    pub(super) const NARROW: f64 = 2.0;
}

/// Plans a linear layer's backward pass; `kind` is the projection asked for, if any.
pub fn plan_linear(problem: &Linear, request: Request, kind: Option<SketchKind>) -> Plan {
    plan_for(problem, request, kind, has_avx512())
}

/// [`plan_linear`] on a processor with or without AVX-512.
fn plan_for(problem: &Linear, request: Request, kind: Option<SketchKind>, avx512: bool) -> Plan {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let kind = kind.filter(|_| request.sketch);
    let outer = shape.weights() as f64;
    let total = rows.total() as f64;
    let filled = (0..rows.samples()).filter(|&n| !rows.range(n).is_empty()).count() as f64;
    let sides = (shape.inputs() + shape.outputs()) as f64;

    // What the records cost on either path, beyond a plain dW.
    let square_rows: f64 = (0..rows.samples()).map(|n| (rows.range(n).len() as f64).powi(2)).sum();
    let gram = if request.norms { square_rows * sides * cost::GRAM } else { 0.0 };
    let (by_rows, by_tiles) = match kind {
        Some(SketchKind::TwoSided { outputs, inputs }) => {
            let (o, i) = (shape.outputs() as f64, shape.inputs() as f64);
            let (k_o, k_i) = (outputs as f64, inputs as f64);
            let rows = total * (o * k_o + i * k_i) * cost::NARROW + total * k_o * k_i;
            (rows, filled * (outer + o * k_o) * k_i * cost::NARROW)
        }
        _ => (0.0, 0.0),
    };
    let factored = gram + by_rows;
    let mut forming = filled * outer * cost::TILE + total * outer * cost::lag(avx512);
    if request.norms {
        forming += filled * outer * cost::SQUARE;
    }
    if !request.dw {
        forming += total * outer;
    }
    let counted = matches!(kind, Some(SketchKind::Count { .. }));
    let (factored, formed) = if counted {
        (factored + total * outer * cost::COUNT_ROW, forming + filled * outer * cost::COUNT)
    } else {
        (factored, forming + by_rows.min(by_tiles))
    };
    let fits = outer > 0.0 && rows.longest() <= PACKED_ROWS;
    let mut blocks = f64::INFINITY;
    if request.norms && !counted && avx512 && fits {
        let dw = if request.dw { 0.0 } else { total * outer };
        let lag = total * outer * cost::LAG_BLOCKS + filled * outer * cost::BLOCK;
        blocks = lag + total * sides * cost::PACK + dw + by_rows;
    }
    let records = request.norms || kind.is_some();

    let plain = total * outer * f64::from(u8::from(request.dx) + u8::from(request.dw)).max(1.0);
    let in_registers = blocks < formed.min(factored);
    let (path, extra) = if records && formed.min(blocks) < factored {
        (Path::Formed, formed.min(blocks))
    } else {
        (Path::Factored, factored)
    };
    let plan = Plan {
        path,
        norms: request.norms.then_some(match path {
            Path::Formed if in_registers => Norms::Blocks,
            Path::Formed => Norms::Tiles,
            Path::Factored => Norms::Gram,
        }),
        sketch: kind.map(|_| match path {
            Path::Formed if counted => Sketching::CountTiles,
            Path::Factored if counted => Sketching::CountRows,
            Path::Formed if by_tiles < by_rows && !in_registers => Sketching::ProjectTiles,
            _ => Sketching::ProjectRows,
        }),
        tile: extents([shape.outputs(), shape.inputs()], avx512),
        extra: if plain > 0.0 { extra / plain } else { 0.0 },
        workspace_bytes: 0,
        rows: if filled > 0.0 { total / filled } else { 0.0 },
    };
    Plan { workspace_bytes: workspace(rows, shape, &plan, request, kind), ..plan }
}

/// Whether Gram matrices of so many rows a sample cost less than squaring its formed gradient, `sides`
/// being the numbers of a row of both operands.
pub(crate) fn gram_is_cheaper(rows: usize, sides: usize, weights: usize) -> bool {
    let [rows, sides, weights] = [rows, sides, weights].map(|count| count as f64);
    rows * rows * sides * cost::GRAM
        < weights * (cost::TILE + cost::SQUARE + rows * cost::lag(has_avx512()))
}

/// Extents of a tile for a matrix, so that it stays in a core's second-level cache between being formed
/// and being dropped, and at least four tiles where the matrix is worth sharing between threads. With
/// AVX-512 that cache has a mebibyte or more, but on few processors, and products want whole kernels of 64
/// columns; the larger a tile, the less is copied for its product.
fn extents([outputs, inputs]: [usize; 2], avx512: bool) -> [usize; 2] {
    let (columns, step, numbers) = if avx512 { (640, 64, 1 << 17) } else { (256, EDGE, 1 << 16) };
    let fit = |extent: usize, parts: usize, step: usize| {
        // At least one micro-block, and none beyond the matrix.
        let last = extent.next_multiple_of(EDGE).max(EDGE);
        extent.div_ceil(parts).next_multiple_of(step).clamp(EDGE, last)
    };
    let width = fit(inputs, inputs.div_ceil(columns).max(1), step);
    let (across, mut down) = (inputs.div_ceil(width), outputs.div_ceil(numbers / width).max(1));
    if outputs * inputs > 1 << 14 && across * down < 4 {
        down = 4_usize.div_ceil(across);
    }
    [fit(outputs, down, EDGE), width]
}

/// Whether large products run on vectors of 16.
pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Rows of which blocks in registers keep a copy; no sample has more there.
pub(crate) const PACKED_ROWS: usize = 512;

/// Most cells, the units of parallel work, a matrix is cut into.
const CELLS: usize = 16;

/// Tiles per cell on each side of the matrix.
pub(crate) fn tiles_per_cell(extents: [usize; 2], tile: [usize; 2]) -> [usize; 2] {
    let [rows, columns] = [0, 1].map(|side| extents[side].div_ceil(tile[side]));
    let per_row = rows.div_ceil(CELLS).max(1);
    let left = CELLS / rows.div_ceil(per_row).max(1);
    [per_row, columns.div_ceil(left).max(1)]
}

/// [`Plan::workspace_bytes`].
fn workspace(
    rows: &Rows,
    shape: GradientShape,
    plan: &Plan,
    request: Request,
    kind: Option<SketchKind>,
) -> usize {
    let (samples, outputs, inputs) = (rows.samples(), shape.outputs(), shape.inputs());
    let [tile_o, tile_i] = plan.tile;
    let (mut floats, mut kept) = (0, 0);
    if shape.bias() && (request.db || request.sketch) {
        floats += samples * outputs + outputs;
    }
    match kind {
        Some(SketchKind::TwoSided { outputs: k_o, inputs: k_i }) => {
            kept = k_o * k_i;
            floats += outputs * k_o + inputs * k_i;
            if shape.bias() {
                floats += outputs * k_o + k_i;
            }
            floats += match plan.sketch {
                Some(Sketching::ProjectRows) => rows.total() * (k_o + k_i),
                _ => tile_o.min(outputs) * k_i,
            };
        }
        Some(SketchKind::Count { buckets }) => {
            kept = buckets;
            let hashed = match plan.sketch {
                Some(Sketching::CountRows) => [outputs, inputs],
                _ => [tile_o, tile_i],
            };
            floats += 4 * hashed[0].div_ceil(8) * hashed[1].div_ceil(8) + 4 * (buckets + 64);
            floats += inputs.next_multiple_of(8);
        }
        None => {}
    }
    if plan.norms == Some(Norms::Blocks) {
        // Both operands copied, the sums of squares of blocks, a strip of these.
        let copied = rows.total().min(PACKED_ROWS);
        floats += copied * (inputs.next_multiple_of(32) + outputs.next_multiple_of(14));
        floats += 2 * samples * outputs.div_ceil(14) + 32 * outputs.min(320);
    } else if plan.path == Path::Formed {
        let cell = tiles_per_cell([shape.outputs(), shape.inputs()], plan.tile);
        let cells = outputs.div_ceil(cell[0] * tile_o) * inputs.div_ceil(cell[1] * tile_i);
        floats += tile_o * tile_i + cells * samples * (kept + 2);
    } else if request.norms {
        floats += 2 * rows.longest() * rows.longest();
    }
    4 * floats
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_SIDED: Option<SketchKind> = Some(SketchKind::TwoSided { outputs: 16, inputs: 16 });
    const COUNT: Option<SketchKind> = Some(SketchKind::Count { buckets: 256 });

    fn layer(rows: usize) -> Linear {
        Linear::new(Rows::uniform(8, rows).unwrap(), 320, 640).unwrap()
    }

    #[test]
    fn tiles_are_of_whole_micro_blocks_and_enough() {
        for avx512 in [false, true] {
            for outputs in [0, 1, 7, 8, 9, 64, 128, 320, 640, 1280, 10_240] {
                for inputs in [0, 1, 16, 40, 320, 512, 640, 768, 1024, 1280, 5120] {
                    let tile = extents([outputs, inputs], avx512);
                    let what = format!("{outputs} × {inputs}, {avx512}: {tile:?}");
                    let tiles = outputs.div_ceil(tile[0]) * inputs.div_ceil(tile[1]);
                    assert!(tile.iter().all(|tile| tile % EDGE == 0 && *tile > 0), "{what}");
                    assert!(tile[0] <= outputs.next_multiple_of(EDGE).max(EDGE), "{what}");
                    assert!(tile[1] <= inputs.next_multiple_of(EDGE).max(EDGE), "{what}");
                    assert!(tile[0] * tile[1] <= (1 << 17) + 640 * EDGE, "{what}");
                    let few = outputs.div_ceil(EDGE) < 4;
                    assert!(tiles >= 4 || few || outputs * inputs <= 1 << 14, "{what}");
                }
            }
        }
    }

    #[test]
    fn many_rows_are_formed_and_few_are_factored() {
        for avx512 in [false, true] {
            let plan = |rows| plan_for(&layer(rows), Request::everything(), TWO_SIDED, avx512);
            assert_eq!(plan(1).path, Path::Factored);
            assert_eq!(plan(4096).path, Path::Formed);
            assert_eq!(plan(4096).sketch, Some(Sketching::ProjectTiles));
            assert_eq!(plan(64).sketch, Some(Sketching::ProjectRows));
            assert!(plan(4096).extra < plan(64).extra);
            assert!(plan(64).extra < 0.25, "{}", plan(64));
        }
    }

    #[test]
    fn between_few_and_many_rows_blocks_stay_in_registers() {
        let plan = |rows, kind| plan_for(&layer(rows), Request::everything(), kind, true);
        assert_eq!(plan(8, TWO_SIDED).norms, Some(Norms::Gram));
        assert_eq!(plan(77, TWO_SIDED).norms, Some(Norms::Blocks));
        assert_eq!(plan(77, TWO_SIDED).path, Path::Formed);
        assert!(plan(77, TWO_SIDED).to_string().contains("formed in registers"));
        // A count sketch wants every element of a tile.
        assert_eq!(plan(256, COUNT).norms, Some(Norms::Tiles));
        // Without norms there is nothing to form gradients for.
        let sketch = Request { dw: true, sketch: true, ..Request::default() };
        assert_eq!(plan_for(&layer(77), sketch, TWO_SIDED, true).norms, None);
    }

    #[test]
    fn a_count_sketch_of_few_rows_says_what_it_costs() {
        let request = Request::everything();
        let text = plan_linear(&layer(1), request, COUNT).to_string();
        assert!(text.contains("as much as forming their outer products"), "{text}");
        assert!(text.contains("has a factored form"), "{text}");
        assert!(plan_linear(&layer(1), request, COUNT).extra > 1.0);
        for quiet in
            [plan_linear(&layer(256), request, COUNT), plan_linear(&layer(1), request, TWO_SIDED)]
        {
            assert!(quiet.notes().is_empty(), "{quiet}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_not_planned() {
        let only = |request| plan_linear(&layer(4096), request, TWO_SIDED);
        let plain = only(Request { dw: true, ..Request::default() });
        assert_eq!((plain.path, plain.norms, plain.sketch), (Path::Factored, None, None));
        assert_eq!(plain.extra, 0.0);
        let sketch = only(Request { sketch: true, ..Request::default() });
        assert_eq!(sketch.norms, None);
        // Without a dW to share them with, forming gradients just to project them is dear.
        assert_eq!(sketch.path, Path::Factored);
    }

    #[test]
    fn nothing_is_not_a_number() {
        let empty = Linear::new(Rows::new([0]).unwrap(), 0, 0).unwrap();
        let plan = plan_linear(&empty, Request::everything(), COUNT);
        assert!(plan.extra == 0.0 && plan.rows == 0.0);
        let none = Linear::new(Rows::new([0, 0, 0]).unwrap(), 3, 0).unwrap();
        assert!(!plan_linear(&none, Request::everything(), TWO_SIDED).to_string().contains("NaN"));
    }
}
