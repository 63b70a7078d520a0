//! Shared by the unit tests: seeded inputs, buffers for every output, comparison with the
//! reference.

use crate::ops::{LayerOutputs, Options, ParamGrad, Routing};
use crate::problem::GradientShape;
use crate::projection::{Sketch, philox4x32};
use crate::reference::Gradients;
use crate::routing::{LayerRouting, Region, RegionMap};

/// Numbers in `[-1, 1)`.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let word = |at: usize| philox4x32([at as u32, 0, 0, 0], [seed, 77])[0];
    (0..len).map(|at| word(at) as f32 / (1u64 << 31) as f32 - 1.0).collect()
}

/// Integers in `-3..=3`.
pub(crate) fn integers(len: usize, seed: u32) -> Vec<f32> {
    noise(len, seed).into_iter().map(|x| (x * 3.5).trunc()).collect()
}

/// Two categories; an owned range of outputs for all inputs, another rectangle where it fits.
pub(crate) fn two_categories(shape: GradientShape) -> LayerRouting {
    let (o, i) = (shape.outputs(), shape.features());
    let mut owned = Vec::new();
    if o > 0 && i > 0 {
        owned.push(Region { outputs: o / 2..o, inputs: 0..i });
    }
    if o > 2 && i > 2 {
        owned.push(Region { outputs: 0..o / 2, inputs: 1..i - 1 });
    }
    let regions = RegionMap::new(o, i, owned).unwrap();
    let count = regions.len();
    let route = [1.0, 0.0, -0.5, 0.0, 2.0, 1.0];
    let table = |weights: &[f32]| -> Vec<f32> {
        (0..2).flat_map(|c| weights[c * 3..c * 3 + count].to_vec()).collect()
    };
    let flow = table(&[1.0, 0.5, 0.0, 0.25, 1.0, 1.0]);
    LayerRouting::new(regions, 2, table(&route), flow).unwrap()
}

/// Runs `test` with every combination of routing and sketch.
pub(crate) fn for_all_options(
    shape: GradientShape,
    samples: usize,
    mut test: impl FnMut(&Options),
) {
    let layer = two_categories(shape);
    let categories: Vec<u32> = (0..samples).map(|n| (n % 2) as u32).collect();
    let gates: Vec<f32> = (0..samples).map(|n| [1.0, 0.5, 0.0][n % 3]).collect();
    let routing = Routing { layer: &layer, categories: &categories, gates: Some(&gates) };
    let sketches = [Sketch::two_sided(4, 5, 6).unwrap(), Sketch::count(64, 5, 6).unwrap()];
    for routing in [None, Some(routing)] {
        for sketch in sketches {
            for sketch_routed in [false, true] {
                let sketch = Some(sketch);
                test(&Options {
                    routing,
                    sketch,
                    sketch_routed,
                    sample_scale: 2.0,
                    ..Options::default()
                });
            }
        }
    }
}

/// Every output of a layer, filled with NaN.
pub(crate) struct Buffers {
    pub(crate) dx: Vec<f32>,
    dw: Vec<f32>,
    db: Vec<f32>,
    sq_norm: Vec<f32>,
    sq_norm_bias: Vec<f32>,
    sketch: Vec<f32>,
    touched: Vec<bool>,
}

impl Buffers {
    pub(crate) fn new(shape: GradientShape, samples: usize, dx: usize, options: &Options) -> Self {
        let nan = |len: usize| vec![f32::NAN; len];
        let biased = if shape.bias() { samples } else { 0 };
        let regions = options.routing.map_or(1, |routing| routing.layer.regions().len());
        Self {
            dx: nan(dx),
            dw: nan(shape.weights()),
            db: nan(shape.biases()),
            sq_norm: nan(samples),
            sq_norm_bias: nan(biased),
            sketch: nan(samples * options.sketch.unwrap().len()),
            touched: vec![false; regions],
        }
    }

    pub(crate) fn split(&mut self, bias: bool) -> (&mut [f32], LayerOutputs<'_, f32>) {
        let outputs = LayerOutputs {
            dw: Some(ParamGrad::F32(&mut self.dw)),
            db: bias.then_some(ParamGrad::F32(&mut self.db)),
            sq_norm: Some(&mut self.sq_norm),
            sq_norm_bias: bias.then_some(&mut self.sq_norm_bias),
            sketch: Some(&mut self.sketch),
            touched: Some(&mut self.touched),
        };
        (&mut self.dx, outputs)
    }

    /// Relative L2 error of every output at most `tolerance`.
    pub(crate) fn check(&self, expected: &Gradients, tolerance: f64, what: &str) {
        for (name, got, expected) in [
            ("dx", &self.dx, &expected.dx),
            ("dw", &self.dw, &expected.dw),
            ("db", &self.db, &expected.db),
            ("sq_norm", &self.sq_norm, &expected.sq_norm),
            ("sq_norm_bias", &self.sq_norm_bias, &expected.sq_norm_bias),
            ("sketch", &self.sketch, &expected.sketch),
        ] {
            assert_eq!(got.len(), expected.len(), "{name} of {what}");
            let squares =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
            let error = squares(&mut got.iter().zip(expected).map(|(g, e)| f64::from(*g) - e));
            let norm = squares(&mut expected.iter().copied());
            assert!(
                error.sqrt() <= tolerance * norm.sqrt(),
                "{name} of {what}: error {:e}, norm {:e}",
                error.sqrt(),
                norm.sqrt()
            );
        }
        assert_eq!(self.touched, expected.touched, "{what}");
    }
}
