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
use crate::problem::Linear;
use crate::projection::SketchKind;

mod costs;
mod space;

pub(crate) use costs::gram_is_cheaper;
pub(crate) use space::{BAND, BLOCK, PACKED_ROWS, STRIPS, tiles_per_cell};

use costs::Costs;
use space::workspace;

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
    /// Tile by tile in cache-resident scratch, or block by block in registers.
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
    /// Extents of a formed tile; blocks in registers have the processor's.
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

/// Plans a linear layer's backward pass; `kind` is the projection asked for, if any.
pub fn plan_linear(problem: &Linear, request: Request, kind: Option<SketchKind>) -> Plan {
    plan_for(problem, request, kind, has_avx512())
}

/// [`plan_linear`] on a processor with or without AVX-512.
fn plan_for(problem: &Linear, request: Request, kind: Option<SketchKind>, avx512: bool) -> Plan {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let kind = kind.filter(|_| request.sketch);
    let costs = Costs::new(problem, request, kind, avx512);
    let counted = matches!(kind, Some(SketchKind::Count { .. }));
    let in_registers = costs.blocks < costs.tiles.min(costs.factored);
    let formed = costs.tiles.min(costs.blocks);
    let records = request.norms || kind.is_some();
    let (path, extra) = if records && formed < costs.factored {
        (Path::Formed, formed)
    } else {
        (Path::Factored, costs.factored)
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
            Path::Formed if costs.projects_tiles && !in_registers => Sketching::ProjectTiles,
            _ => Sketching::ProjectRows,
        }),
        tile: costs.tile,
        extra: if costs.plain > 0.0 { extra / costs.plain } else { 0.0 },
        workspace_bytes: 0,
        rows: if costs.filled > 0.0 { rows.total() as f64 / costs.filled } else { 0.0 },
    };
    Plan { workspace_bytes: workspace(rows, shape, &plan, request, kind), ..plan }
}

/// Whether large products run on vectors of 16.
pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Rows;

    const TWO_SIDED: Option<SketchKind> = Some(SketchKind::TwoSided { outputs: 16, inputs: 16 });
    const COUNT: Option<SketchKind> = Some(SketchKind::Count { buckets: 256 });

    fn layer(rows: usize) -> Linear {
        Linear::new(Rows::uniform(8, rows).unwrap(), 320, 640).unwrap()
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
