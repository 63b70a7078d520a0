//! What plans of all ops are made of: a pure function of shapes, wishes and device properties.

use super::buffers::{Operand, Operands};
use super::generated as abi;
use super::generated::GradrouteLayer;
use super::routing::RoutingShape;
use crate::ops::plan::{Path, Request};
use crate::problem::{Dtype, GradientShape, Rows};
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
    /// The path of weight gradients, where it is possible; `None` leaves it to the planner. Of a LoRA branch,
    /// whose factors have one read of the rows together, `Formed` stands for each by itself.
    pub path: Option<Path>,
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
            path: None,
        }
    }
}

/// What the plans of all ops hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Common {
    pub(super) layer: GradrouteLayer,
    pub(super) wish: Wish,
    pub(super) dtype: Dtype,
    /// Whether the layer has a bias.
    pub(super) bias: bool,
    /// Rows of the sample that has most.
    pub(super) longest: u64,
    /// Elements of the weight.
    pub(super) weights: u64,
    /// The inputs, as a linear layer has them unless the op says otherwise.
    pub(super) operands: Operands,
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

    /// Takes the bias gradients, one for each sample.
    pub(super) fn bias(&mut self, common: &Common) -> u64 {
        let columns = u64::from(common.layer.samples) * u64::from(common.layer.outputs);
        self.take(common.bias_asked(), 4 * columns)
    }
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
        taps: shape.taps() as u32,
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
        reserved: 0,
    }
}

impl Common {
    pub(super) fn new(shape: GradientShape, rows: &Rows, dtype: Dtype, wish: Wish) -> Result<Self> {
        let samples = u32::try_from(rows.samples()).ok().filter(|&n| n <= LONGEST_GRID);
        let samples = samples.ok_or_else(|| {
            Error::argument("offsets", format!("at most {LONGEST_GRID} samples"), rows.samples())
        })?;
        if let Some(routing) = wish.routing {
            let sides = [routing.outputs as usize, routing.features as usize];
            if sides != [shape.outputs(), shape.features()] {
                let expected = format!("regions of a {} × {}", shape.outputs(), shape.features());
                return Err(Error::argument("routing", expected, format!("{sides:?}")));
            }
        }
        let layer = layer(shape, samples, rows.total() as u64, &wish);
        let total = rows.total() as u64;
        let [x, dy] =
            [shape.features(), shape.outputs()].map(|side| (side as u64).saturating_mul(total));
        let weights = shape.weights() as u64;
        let mut common = Self {
            layer,
            wish,
            dtype,
            bias: shape.bias(),
            longest: rows.longest() as u64,
            weights,
            operands: Operands::NONE,
        };
        let (forms, dx) = (common.forms(), wish.request.dx);
        common.operands.x = Operand::new(forms, x);
        common.operands.dy = Operand::new(forms || dx || common.bias_asked(), dy);
        common.operands.weight = Operand::new(dx, weights);
        Ok(common)
    }

    /// Whether sketches are asked for.
    pub(super) fn sketched(&self) -> bool {
        self.layer.sketch != abi::GRADROUTE_SKETCH_NONE
    }

    /// Whether anything is recorded of the weights' gradients.
    pub(super) fn recorded(&self) -> bool {
        self.wish.request.norms || self.sketched()
    }

    /// Whether anything is asked of the weights' gradients.
    pub(super) fn forms(&self) -> bool {
        self.wish.request.dw || self.recorded()
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
