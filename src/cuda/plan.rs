//! What a call on the device will launch: a pure function of shapes, wishes and device properties.

use std::fmt;

use super::generated as abi;
use super::generated::GradrouteLayer;
use super::routing::RoutingShape;
use crate::ops::plan::Request;
use crate::problem::{Dtype, GradientShape, Linear, Rows};
use crate::projection::{Sketch, SketchKind};
use crate::{Error, Result};

/// What plans need to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory a block can have when it asks, in bytes.
    pub shared_bytes: u32,
}

/// What is asked of a layer, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wish {
    /// Which outputs.
    pub request: Request,
    /// Squared norms of the bias gradients.
    pub bias_norms: bool,
    /// Which regions were touched.
    pub touched: bool,
    /// `dw` and `db` in the input's format instead of f32.
    pub native: bool,
    /// As [`crate::ops::Options::accumulate`].
    pub accumulate: bool,
    /// As [`crate::ops::Options::sketch`].
    pub sketch: Option<Sketch>,
    /// As [`crate::ops::Options::sketch_routed`].
    pub sketch_routed: bool,
    /// As [`crate::ops::Options::sample_scale`].
    pub sample_scale: f32,
    /// Of the layer's routing, if it is routed.
    pub routing: Option<RoutingShape>,
}

impl Default for Wish {
    /// Nothing asked for; scale 1.
    fn default() -> Self {
        Self {
            request: Request::default(),
            bias_norms: false,
            touched: false,
            native: false,
            accumulate: false,
            sketch: None,
            sketch_routed: false,
            sample_scale: 1.0,
            routing: None,
        }
    }
}

/// What the plans of all ops hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Common {
    pub(super) layer: GradrouteLayer,
    pub(super) wish: Wish,
    pub(super) dtype: Dtype,
    /// Whether the layer has a bias.
    pub(super) bias: bool,
}

/// Hands out parts of a workspace, each aligned to 256 bytes.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) bytes: u64,
}

impl Parts {
    /// Where a part of so many bytes begins, if it is needed.
    pub(super) fn take(&mut self, needed: bool, bytes: u64) -> u64 {
        let begin = self.bytes;
        self.bytes += if needed { bytes.next_multiple_of(256) } else { 0 };
        begin
    }
}

/// Where the parts of the workspace begin, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Running totals, one for each part of the samples.
    pub(super) totals: u64,
    /// Squares, one for each sample, tile and warp.
    pub(super) squares: u64,
    /// Sketches, one for each sample and tile.
    pub(super) sketches: u64,
    /// Sketches in the making, where shared memory has no room for them.
    pub(super) stage: u64,
    /// Bias gradients, one for each sample.
    pub(super) bias: u64,
    /// All of it.
    pub bytes: u64,
}

/// How a linear layer's backward pass runs on a device. `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearPlan {
    pub(super) common: Common,
    /// Tiles of the weight gradient, `[outputs, inputs]`.
    pub tiles: [u32; 2],
    /// Parts of the samples, each a row of blocks with its own running total.
    pub parts: u32,
    /// Dynamic shared memory of the weight gradient's blocks, in bytes.
    pub shared_bytes: u32,
    /// The workspace that a launch needs.
    pub workspace: Workspace,
}

/// Rows of 64 bytes of two matrices, three times: the stages of asynchronous copies.
const STAGES_BYTES: u32 = 3 * 2 * 64 * abi::GRADROUTE_TILE;
/// A count sketch's places: a word for each micro-block of a warp and lane.
const PLACES_BYTES: u32 = abi::GRADROUTE_WARPS * 32 * 32 * 4;
/// What the kernel declares statically, and the driver keeps for itself, rounded up.
const STATIC_BYTES: u32 = 4 << 10;

/// Plans a linear layer's backward pass.
///
/// # Errors
/// [`Error::Argument`] for a layer or batch larger than a launch can be.
pub fn plan_linear(
    problem: &Linear,
    dtype: Dtype,
    wish: Wish,
    properties: &Properties,
) -> Result<LinearPlan> {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let mut common = Common::new(shape, rows, dtype, wish)?;
    let samples = common.layer.samples;
    let tile = |extent: usize| extent.div_ceil(abi::GRADROUTE_TILE as usize);
    let tiles = [tile(shape.outputs()), tile(shape.inputs())];
    if tiles[0] > LONGEST_GRID as usize {
        let most = LONGEST_GRID as usize * abi::GRADROUTE_TILE as usize;
        return Err(Error::argument("outputs", format!("at most {most}"), shape.outputs()));
    }
    let tiles = tiles.map(|count| count as u32);
    let all_tiles = tiles[0] * tiles[1];
    let parts = (properties.multiprocessors / all_tiles.max(1)).clamp(1, samples.max(1));
    let layer = &mut common.layer;
    let count = layer.sketch == abi::GRADROUTE_SKETCH_COUNT;
    let length = u64::from(layer.sketch_outputs) * u64::from(layer.sketch_inputs);
    let before = STAGES_BYTES + if count { PLACES_BYTES } else { 0 };
    let stage = u64::from(abi::GRADROUTE_WARPS) * length * 4;
    let shared = stage + u64::from(before + STATIC_BYTES) <= u64::from(properties.shared_bytes);
    if shared {
        layer.flags |= abi::GRADROUTE_STAGE_SHARED;
    }
    let shared_bytes = before + if shared { stage as u32 } else { 0 };

    let (samples, tiles_all) = (u64::from(samples), u64::from(all_tiles));
    let (request, sketched) = (wish.request, common.sketched());
    let mut take = Parts::default();
    let totals = request.dw && parts > 1;
    let warps = u64::from(abi::GRADROUTE_WARPS);
    let mut workspace = Workspace {
        totals: take.take(totals, 4 * u64::from(parts) * shape.weights() as u64),
        squares: take.take(request.norms, 4 * samples * tiles_all * warps),
        sketches: take.take(sketched, 4 * samples * tiles_all * length),
        stage: take.take(sketched && !shared, u64::from(parts) * tiles_all * stage),
        bias: take.take(common.bias_asked(), 4 * samples * shape.outputs() as u64),
        bytes: 0,
    };
    workspace.bytes = take.bytes;
    Ok(LinearPlan { common, tiles, parts, shared_bytes, workspace })
}

/// The most blocks along the second and third side of a grid.
pub(super) const LONGEST_GRID: u32 = 65535;

/// The kernels' view of a layer.
fn layer(shape: GradientShape, samples: u32, rows: u64, wish: &Wish) -> GradrouteLayer {
    let sketch = wish.sketch.filter(|_| wish.request.sketch);
    let (kind, sides) = match sketch.map(|sketch| sketch.kind()) {
        None => (abi::GRADROUTE_SKETCH_NONE, [0, 0]),
        Some(SketchKind::TwoSided { outputs, inputs }) => {
            (abi::GRADROUTE_SKETCH_TWO_SIDED, [outputs as u32, inputs as u32])
        }
        Some(SketchKind::Count { buckets }) => (abi::GRADROUTE_SKETCH_COUNT, [1, buckets as u32]),
    };
    let [seed, key_layer] = sketch.map_or([0; 2], |sketch| sketch.key());
    let routing = wish.routing.unwrap_or_default();
    let flags = [
        (wish.request.dw, abi::GRADROUTE_DW),
        (wish.request.norms, abi::GRADROUTE_NORMS),
        (wish.accumulate, abi::GRADROUTE_ACCUMULATE),
        (wish.native, abi::GRADROUTE_NATIVE),
        (wish.sketch_routed, abi::GRADROUTE_SKETCH_ROUTED),
    ];
    GradrouteLayer {
        rows,
        samples,
        outputs: shape.outputs() as u32,
        inputs: shape.inputs() as u32,
        features: shape.features() as u32,
        regions: routing.regions,
        output_spans: routing.output_spans,
        input_spans: routing.input_spans,
        flags: flags.iter().map(|&(set, flag)| if set { flag } else { 0 }).sum(),
        sketch: kind,
        sketch_outputs: sides[0],
        sketch_inputs: sides[1],
        seed,
        layer: key_layer,
        sample_scale: wish.sample_scale,
    }
}

impl Common {
    pub(super) fn new(shape: GradientShape, rows: &Rows, dtype: Dtype, wish: Wish) -> Result<Self> {
        let samples = u32::try_from(rows.samples()).ok().filter(|&n| n <= LONGEST_GRID);
        let samples = samples.ok_or_else(|| {
            Error::argument("offsets", format!("at most {LONGEST_GRID} samples"), rows.samples())
        })?;
        let layer = layer(shape, samples, rows.total() as u64, &wish);
        Ok(Self { layer, wish, dtype, bias: shape.bias() })
    }

    /// Whether sketches are asked for.
    pub(super) fn sketched(&self) -> bool {
        self.layer.sketch != abi::GRADROUTE_SKETCH_NONE
    }

    /// Whether anything is asked of the weights' gradients.
    pub(super) fn forms(&self) -> bool {
        self.wish.request.dw || self.wish.request.norms || self.sketched()
    }

    /// Whether anything is asked of the biases' gradients.
    pub(super) fn bias_asked(&self) -> bool {
        self.bias && (self.wish.request.db || self.wish.bias_norms || self.sketched())
    }

    /// Numbers kept of each sample.
    pub(super) fn sketch_length(&self) -> u32 {
        self.layer.sketch_outputs * self.layer.sketch_inputs
    }

    /// What brings a sum of signed numbers to the sketch's scale.
    pub(super) fn sketch_factor(&self) -> f32 {
        let scale = self.layer.sample_scale;
        if self.layer.sketch == abi::GRADROUTE_SKETCH_TWO_SIDED {
            let [o, i] = [self.layer.sketch_outputs, self.layer.sketch_inputs];
            return scale * (1.0 / (o as f32).sqrt()) * (1.0 / (i as f32).sqrt());
        }
        scale
    }
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = abi::GRADROUTE_TILE;
        write!(f, "formed in {} × {} tiles of {edge} × {edge}", self.tiles[0], self.tiles[1])?;
        write!(f, ", samples in {} parts", self.parts)?;
        write!(f, ", {} KiB of shared memory a block", self.shared_bytes.div_ceil(1024))?;
        write!(f, ", {} KiB of workspace", self.workspace.bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(samples: usize, features: usize, sketch: Sketch) -> LinearPlan {
        let rows = Rows::uniform(samples, 256).unwrap();
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
        assert_eq!((plan(16, 320, sketch).tiles, plan(16, 320, sketch).parts), ([3, 3], 11));
        assert_eq!(plan(16, 1280, sketch).parts, 1);
        assert_eq!(plan(4, 128, sketch).parts, 4);
        let text = plan(16, 320, sketch).to_string();
        assert!(text.contains("3 × 3 tiles") && text.contains("11 parts"), "{text}");
    }

    #[test]
    fn long_sketches_leave_shared_memory() {
        let short = plan(2, 128, Sketch::count(256, 1, 0).unwrap());
        let long = plan(2, 128, Sketch::count(4096, 1, 0).unwrap());
        let kept = |plan: &LinearPlan| plan.common.layer.flags & abi::GRADROUTE_STAGE_SHARED != 0;
        assert!(kept(&short) && !kept(&long));
        assert!(short.shared_bytes + STATIC_BYTES <= 99 << 10);
        assert!(long.workspace.bytes > 2 * 8 * 4096 * 4);
    }
}
