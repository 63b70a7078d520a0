//! Plan and launches of a linear layer.

use std::fmt;

use cudarc::driver::sys::CUdeviceptr;

use super::call::{Call, aligned, launch};
use super::device::Grid;
use super::formed::{Extent, FormedPlan, plan_formed, tiles};
use super::generated::{
    GRADROUTE_NORMS, GRADROUTE_SKETCH_NONE, GRADROUTE_THREADS, GRADROUTE_TILE, GradrouteLayer,
};
use super::plan::{Common, Parts, Properties, Wish};
use super::queue::{Plan, Queue};
use crate::Result;
use crate::ops::plan::Path;
use crate::problem::{Dtype, Linear};

/// How a linear layer's backward pass runs on a device. `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearPlan {
    common: Common,
    formed: FormedPlan,
    bias: u64,
    workspace_bytes: u64,
}

/// Plans a linear layer's backward pass.
///
/// # Errors
/// [`crate::Error::Argument`] for a layer or batch larger than a launch can be.
pub fn plan_linear(
    problem: &Linear,
    dtype: Dtype,
    wish: Wish,
    properties: &Properties,
) -> Result<LinearPlan> {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let mut common = Common::new(shape, rows, dtype, wish)?;
    let mut take = Parts::default();
    let extent = Extent::of(rows, dtype.size() == 2, true);
    let sides = [tiles(shape.outputs()), tiles(shape.inputs())];
    let formed = plan_formed(&mut common, sides, extent, properties, &mut take)?;
    let bias = take.bias(&common);
    Ok(LinearPlan { common, formed, bias, workspace_bytes: take.bytes })
}

/// Shared memory of an input gradient's block: three stages of 128 rows of `dY` and of the weight; in
/// f32 rows of `dY` are kept apart.
pub(super) fn dgrad_bytes(bytes: u32) -> u32 {
    let pitch = if bytes == 4 { 80 } else { 64 };
    3 * GRADROUTE_TILE * (pitch + 64)
}

/// Queues `to [R, I] = flow · factor · left [R, O] · right [O, I]`, of numbers of so many bytes, by a
/// kernel of `linear_dgrad.cu`.
pub(super) fn product(
    call: &Call,
    name: &str,
    mut layer: GradrouteLayer,
    [left, right, to]: [CUdeviceptr; 3],
    factor: f32,
    bytes: u32,
) -> Result<()> {
    let (at, [_, flow, map]) = (call.at, call.tables);
    if layer.rows == 0 || layer.inputs == 0 {
        return Ok(());
    }
    layer.flags |= aligned(&[(left, layer.outputs), (right, layer.inputs)], bytes);
    let rows = layer.rows.div_ceil(u64::from(GRADROUTE_TILE));
    let blocks = [
        layer.inputs.div_ceil(GRADROUTE_TILE),
        rows.min(32768) as u32,
        rows.div_ceil(32768) as u32,
    ];
    let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: dgrad_bytes(bytes) };
    launch! { call, "linear_dgrad", name, grid;
    layer, left, right, at.offsets, at.categories, flow, map, factor, to }
}

impl LinearPlan {
    /// How weight gradients arise.
    pub fn formed(&self) -> &FormedPlan {
        &self.formed
    }
}

impl Queue for LinearPlan {
    fn common(&self) -> &Common {
        &self.common
    }

    fn queue(&self, call: &Call) -> Result<()> {
        if self.common.wish.request.dx {
            let (layer, at, bytes) = (call.layer(), call.at, self.common.dtype.size() as u32);
            product(
                call,
                &call.name("linear_dgrad"),
                layer,
                [at.dy, at.weight, at.dx],
                1.0,
                bytes,
            )?;
        }
        let bias = call.work(self.bias);
        if self.common.forms() {
            let (layer, at) = (call.layer(), call.at);
            let mut layer = call.aligned(&[(at.x, layer.inputs), (at.dy, layer.outputs)]);
            if self.formed.path == Path::Factored {
                // The product knows nothing of the records.
                layer.flags &= !GRADROUTE_NORMS;
                layer.sketch = GRADROUTE_SKETCH_NONE;
                let kernel = ("linear_factored", "linear_factored_wgrad");
                call.form(&self.formed, kernel.0, kernel.1, (layer, at.x, at.dy), bias)?;
                call.records(&self.formed, [at.x, at.dy])?;
            } else {
                let kernel = "linear_wgrad";
                call.form(&self.formed, kernel, kernel, (layer, at.x, at.dy), bias)?;
            }
        }
        call.bias_of_rows(&self.formed, call.at.dy, bias)
    }
}

impl Plan for LinearPlan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} KiB of workspace", self.formed, self.workspace_bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::RoutingShape;
    use super::*;
    use crate::ops::plan::Request;
    use crate::problem::Rows;
    use crate::projection::Sketch;

    fn plan(samples: usize, rows: usize, features: usize, sketch: Sketch) -> LinearPlan {
        let rows = Rows::uniform(samples, rows).unwrap();
        let problem = Linear::new(rows, features, features).unwrap().with_bias(true);
        let wish = Wish {
            request: Request::everything(),
            bias_norms: true,
            touched: true,
            sketch: Some(sketch),
            ..Wish::default()
        };
        let properties = Properties { multiprocessors: 100, shared_bytes: 99 << 10 };
        plan_linear(&problem, Dtype::Bf16, wish, &properties).unwrap()
    }

    #[test]
    fn samples_are_split_where_tiles_do_not_fill_the_device() {
        let sketch = Sketch::two_sided(16, 1, 0).unwrap();
        let small = plan(16, 256, 320, sketch);
        assert_eq!((small.formed.tiles, small.formed.parts), ([3, 3], 9));
        assert_eq!(plan(16, 256, 1280, sketch).formed.parts, 1);
        assert_eq!(plan(4, 256, 128, sketch).formed.parts, 4);
        let text = small.to_string();
        assert!(text.contains("3 × 3 tiles") && text.contains("9 parts"), "{text}");
        assert!(text.starts_with("formed"), "{text}");
    }

    #[test]
    fn no_more_totals_than_products_are_worth() {
        let sketch = Sketch::two_sided(16, 1, 0).unwrap();
        // 39 stages of 9 tiles, and 4096 of as many.
        assert_eq!(plan(16, 77, 320, sketch).formed.parts, 5);
        assert_eq!(plan(16, 8192, 320, sketch).formed.parts, 11);
    }

    #[test]
    fn few_rows_are_factored() {
        use Path::{Factored, Formed};
        let two_sided = Sketch::two_sided(16, 1, 0).unwrap();
        let path = |rows, sketch| plan(16, rows, 320, sketch).formed.path;
        assert_eq!(path(1, two_sided), Path::Factored);
        assert_eq!(path(32, two_sided), Path::Factored);
        assert_eq!(path(33, two_sided), Path::Formed);
        let [short, long] = [64, 4096].map(|buckets| Sketch::count(buckets, 1, 0).unwrap());
        assert_eq!([path(1, short), path(2, short), path(1, long)], [Factored, Formed, Formed]);
        assert_eq!(path(1, Sketch::two_sided(64, 1, 0).unwrap()), Path::Formed);
        let text = plan(16, 1, 320, two_sided).to_string();
        assert!(text.contains("factored: dW over all rows in 3 × 3 tiles"), "{text}");
    }

    #[test]
    fn a_wish_decides_where_both_paths_are_possible() {
        let properties = Properties { multiprocessors: 100, shared_bytes: 99 << 10 };
        let plan = |rows, norms, path| {
            let problem = Linear::new(Rows::uniform(16, rows).unwrap(), 320, 320).unwrap();
            let request = Request { dw: true, norms, ..Request::default() };
            let wish = Wish { request, path, ..Wish::default() };
            plan_linear(&problem, Dtype::F32, wish, &properties).unwrap().formed.path
        };
        use Path::{Factored, Formed};
        // Alone, dW is one product for longer.
        let planned = [128, 129].map(|rows| plan(rows, false, None));
        assert_eq!(planned, [Factored, Formed]);
        assert_eq!([1, 33].map(|rows| plan(rows, true, None)), [Factored, Formed]);
        assert_eq!([1, 33].map(|rows| plan(rows, true, Some(Formed))), [Formed, Formed]);
        assert_eq!([1, 33].map(|rows| plan(rows, true, Some(Factored))), [Factored, Formed]);
        assert_eq!(plan(4096, false, Some(Factored)), Factored);
    }

    #[test]
    fn few_rows_are_sketched_as_rows() {
        let sketch = Sketch::two_sided(16, 1, 0).unwrap();
        let by_rows = |rows, features| plan(16, rows, features, sketch).formed.sketch_by_rows;
        assert!(by_rows(77, 320) && by_rows(256, 1280) && by_rows(40, 8));
        assert!(!by_rows(4096, 320));
        let wide = plan(16, 1, 320, Sketch::two_sided(64, 1, 0).unwrap());
        assert!(!wide.formed.sketch_by_rows);
    }

    #[test]
    fn the_bias_comes_from_the_same_rows_where_all_of_them_are_read() {
        let properties = Properties { multiprocessors: 100, shared_bytes: 99 << 10 };
        let bias = |rows, [dw, norms, bias_norms]: [bool; 3], regions| {
            let problem = Linear::new(Rows::uniform(16, rows).unwrap(), 320, 320).unwrap();
            let request = Request { dw, db: true, norms, ..Request::default() };
            let routing = RoutingShape {
                regions,
                output_spans: regions,
                input_spans: 1,
                outputs: 320,
                features: 320,
            };
            let routing = (regions > 0).then_some(routing);
            let wish = Wish { request, bias_norms, routing, ..Wish::default() };
            let problem = problem.with_bias(true);
            plan_linear(&problem, Dtype::Bf16, wish, &properties).unwrap().formed.bias
        };
        let all = [true; 3];
        assert!(bias(256, all, 2) && bias(256, [false, true, true], 2));
        assert!(bias(256, [true, false, false], 0) && bias(256, [true, false, false], 1));
        // A sample that trains the bias may train nothing of a tile.
        assert!(!bias(256, [true, false, false], 2) && !bias(256, [true, false, true], 1));
        assert!(!bias(256, [false; 3], 0), "no tiles are asked for");
        assert!(!bias(1, all, 0), "stages of the factored path hold rows of many samples");
    }

    #[test]
    fn long_sketches_leave_shared_memory() {
        let short = plan(2, 256, 128, Sketch::count(256, 1, 0).unwrap());
        let long = plan(2, 256, 128, Sketch::count(4096, 1, 0).unwrap());
        assert!(short.formed.shared_bytes > 80 << 10);
        assert!(short.formed.shared_bytes <= 95 << 10 && long.formed.shared_bytes <= 95 << 10);
        assert!(long.workspace_bytes() > 2 * 8 * 4096 * 4);
    }
}
