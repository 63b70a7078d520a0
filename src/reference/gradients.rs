//! What becomes of one sample's gradient matrix.

use crate::ops::Options;
use crate::problem::GradientShape;
use crate::projection::{Side, SignMatrix, Sketch, SketchKind, micro_block};

/// Every output of one layer, in f64; layouts as in [`crate::ops`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// Gradient of the input, shaped as the input; empty where no weight was given.
    pub dx: Vec<f64>,
    /// Routed weight gradient, in the weight's layout.
    pub dw: Vec<f64>,
    /// Routed bias gradient, `[O]`; empty without a bias.
    pub db: Vec<f64>,
    /// Squared norm of each sample's weight gradient, `[N]`.
    pub sq_norm: Vec<f64>,
    /// Squared norm of each sample's bias gradient, `[N]`; empty without a bias.
    pub sq_norm_bias: Vec<f64>,
    /// `[N, K]`; empty without a projection.
    pub sketch: Vec<f64>,
    /// Regions that a sample of at least one row trains, `[regions]`.
    pub touched: Vec<bool>,
}

/// `weight · value`, where a weight of exactly 0 selects: 0 whatever the value.
pub(super) fn weigh(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}

/// Flow weight of sample `n` for input feature `i`.
pub(super) fn flow(options: &Options, n: usize, i: usize) -> f64 {
    options.routing.map_or(1.0, |routing| {
        f64::from(routing.flow(n, routing.layer.regions().input_region_at(i)))
    })
}

/// Route weight of sample `n` for matrix element `(o, column)`, the bias column included.
fn route(options: &Options, shape: GradientShape, n: usize, o: usize, column: usize) -> f64 {
    let Some(routing) = options.routing else { return 1.0 };
    let regions = routing.layer.regions();
    let region = if column == shape.inputs() {
        regions.bias_region_at(o)
    } else {
        regions.region_at(o, column % shape.features())
    };
    f64::from(routing.route(n, region))
}

impl Gradients {
    /// Zeros for a layer of this shape.
    pub(super) fn zeros(shape: GradientShape, options: &Options) -> Self {
        Self {
            dw: vec![0.0; shape.weights()],
            db: vec![0.0; shape.biases()],
            touched: vec![false; options.routing.map_or(1, |r| r.layer.regions().len())],
            ..Self::default()
        }
    }

    /// Takes in the gradient `g [outputs, columns]` of the next sample, `n`, which has `rows`
    /// rows. `place(o, i)` is the position of a matrix element in the weight.
    pub(super) fn push(
        &mut self,
        shape: GradientShape,
        options: &Options,
        n: usize,
        rows: usize,
        g: &[f64],
        place: impl Fn(usize, usize) -> usize,
    ) {
        let (columns, inputs) = (shape.columns(), shape.inputs());
        let scale = f64::from(options.sample_scale);
        let mut routed = g.to_vec();
        let (mut weights, mut biases) = (0.0, 0.0);
        for o in 0..shape.outputs() {
            for column in 0..columns {
                let value = g[o * columns + column];
                let applied = weigh(route(options, shape, n, o, column), value);
                routed[o * columns + column] = applied;
                if column == inputs {
                    biases += value * value;
                    self.db[o] += applied;
                } else {
                    weights += value * value;
                    self.dw[place(o, column)] += applied;
                }
            }
        }
        self.sq_norm.push(weights * scale * scale);
        if shape.bias() {
            self.sq_norm_bias.push(biases * scale * scale);
        }
        if let Some(sketch) = &options.sketch {
            let of = if options.sketch_routed { &routed } else { g };
            let numbers = project(sketch, shape, of);
            self.sketch.extend(numbers.into_iter().map(|number| number * scale));
        }
        for (region, touched) in self.touched.iter_mut().enumerate() {
            let trains = options.routing.is_none_or(|routing| routing.route(n, region) != 0.0);
            *touched |= rows > 0 && trains;
        }
    }
}

/// Sketch of a gradient matrix `g [outputs, columns]`.
fn project(sketch: &Sketch, shape: GradientShape, g: &[f64]) -> Vec<f64> {
    let columns = shape.columns();
    let mut out = vec![0.0; sketch.len()];
    match sketch.kind() {
        SketchKind::TwoSided { outputs, inputs } => {
            let p_o = signs(sketch, Side::Outputs, shape.outputs(), shape.outputs(), outputs);
            let p_i = signs(sketch, Side::Inputs, shape.inputs(), columns, inputs);
            for o in 0..shape.outputs() {
                for b in 0..inputs {
                    let sum: f64 = (0..columns)
                        .map(|column| g[o * columns + column] * p_i[column * inputs + b])
                        .sum();
                    for a in 0..outputs {
                        out[a * inputs + b] += p_o[o * outputs + a] * sum;
                    }
                }
            }
        }
        SketchKind::Count { buckets } => {
            for o in 0..shape.outputs() {
                for column in 0..columns {
                    let block =
                        micro_block(sketch.key(), (o / 8) as u32, (column / 8) as u32, buckets);
                    let e = 8 * (o % 8) + column % 8;
                    let signed = f64::from(block.sign(e)) * g[o * columns + column];
                    out[block.bucket(e, buckets)] += signed;
                }
            }
        }
    }
    out
}

/// Sign matrix `[rows, k]` of a side of so many features.
fn signs(sketch: &Sketch, side: Side, features: usize, rows: usize, k: usize) -> Vec<f64> {
    let signs = SignMatrix::new(sketch.key(), side, features, k);
    let mut matrix = vec![0.0f32; rows * k];
    for (row, out) in matrix.chunks_mut(k).enumerate() {
        signs.row(row as u32, out);
    }
    matrix.into_iter().map(f64::from).collect()
}
