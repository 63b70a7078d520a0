//! A problem of any op with its data.

use std::ops::Range;

use gradroute::ops::{Options, Routing};
use gradroute::problem::{
    Conv2d, Conv2dSpec, Element, Embedding, GradientShape, Linear, Lora, Norm, NormKind, Rows,
};
use gradroute::projection::Sketch;
use gradroute::routing::LayerRouting;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

/// A problem of any op.
#[derive(Clone, Debug)]
pub enum Problem {
    Linear(Linear),
    Conv2d(Conv2d),
    Norm(Norm),
    Embedding(Embedding),
    Lora(Lora),
}

impl Problem {
    pub fn samples(&self) -> usize {
        self.row_grouping().map_or_else(|| self.conv().samples, Rows::samples)
    }

    fn row_grouping(&self) -> Option<&Rows> {
        match self {
            Self::Linear(problem) => Some(problem.rows()),
            Self::Conv2d(_) => None,
            Self::Norm(problem) => Some(problem.rows()),
            Self::Embedding(problem) => Some(problem.rows()),
            Self::Lora(problem) => Some(problem.rows()),
        }
    }

    fn conv(&self) -> &Conv2dSpec {
        match self {
            Self::Conv2d(problem) => problem.spec(),
            _ => unreachable!("only a convolution has no row grouping"),
        }
    }

    /// Rows of sample `n`: positions of the output for a convolution.
    pub fn rows(&self, n: usize) -> usize {
        match self {
            Self::Conv2d(problem) => problem.out_size().iter().product(),
            _ => self.row_grouping().unwrap().range(n).len(),
        }
    }

    /// The gradient of each layer: two for LoRA, else one.
    pub fn layers(&self) -> Vec<GradientShape> {
        match self {
            Self::Linear(problem) => vec![problem.gradient()],
            Self::Conv2d(problem) => vec![problem.gradient()],
            Self::Norm(problem) => vec![problem.gradient()],
            Self::Embedding(problem) => vec![problem.gradient()],
            Self::Lora(problem) => vec![problem.a().gradient(), problem.b().gradient()],
        }
    }

    /// Elements of sample `n` in `x`, or in the tokens.
    pub fn x_of(&self, n: usize) -> Range<usize> {
        let wide = match self {
            Self::Linear(problem) => problem.in_features(),
            Self::Conv2d(problem) => {
                let spec = problem.spec();
                spec.in_channels * spec.size[0] * spec.size[1]
            }
            Self::Norm(problem) => problem.features(),
            Self::Embedding(_) => 1,
            Self::Lora(problem) => problem.in_features(),
        };
        self.span(n, wide)
    }

    /// Elements of sample `n` in `dy`.
    pub fn dy_of(&self, n: usize) -> Range<usize> {
        let wide = match self {
            Self::Linear(problem) => problem.out_features(),
            Self::Conv2d(problem) => {
                problem.spec().out_channels * problem.out_size().iter().product::<usize>()
            }
            Self::Norm(problem) => problem.features(),
            Self::Embedding(problem) => problem.features(),
            Self::Lora(problem) => problem.out_features(),
        };
        self.span(n, wide)
    }

    fn span(&self, n: usize, wide: usize) -> Range<usize> {
        match self.row_grouping() {
            Some(rows) => rows.range(n).start * wide..rows.range(n).end * wide,
            None => n * wide..(n + 1) * wide,
        }
    }

    /// The same layer for the samples in `keep`.
    fn of_samples(&self, keep: &[usize]) -> Self {
        let mut offsets = vec![0];
        for &n in keep {
            offsets.push(offsets[offsets.len() - 1] + self.rows(n) as u64);
        }
        let rows = Rows::new(offsets).unwrap();
        match self {
            Self::Linear(problem) => {
                let bias = problem.gradient().bias();
                let new = Linear::new(rows, problem.in_features(), problem.out_features());
                Self::Linear(new.unwrap().with_bias(bias))
            }
            Self::Conv2d(problem) => {
                let spec = Conv2dSpec { samples: keep.len(), ..*problem.spec() };
                Self::Conv2d(Conv2d::new(spec).unwrap())
            }
            Self::Norm(problem) => {
                let (features, eps) = (problem.features(), problem.eps());
                let new = match problem.kind() {
                    NormKind::Layer => Norm::layer(rows, features, eps),
                    NormKind::Rms => Norm::rms(rows, features, eps),
                    NormKind::Group { groups } => {
                        Norm::group(keep.len(), features, problem.rows().longest(), groups, eps)
                    }
                };
                Self::Norm(new.unwrap().with_bias(problem.gradient().bias()))
            }
            Self::Embedding(problem) => {
                let (vocabulary, features) = (problem.vocabulary(), problem.features());
                Self::Embedding(Embedding::new(rows, vocabulary, features).unwrap())
            }
            Self::Lora(problem) => {
                let (inputs, outputs) = (problem.in_features(), problem.out_features());
                let new = Lora::new(rows, inputs, outputs, problem.rank(), problem.scale());
                Self::Lora(new.unwrap())
            }
        }
    }
}

/// What [`Options`] borrows from.
#[derive(Clone, Debug)]
pub struct Setup {
    pub routing: Option<LayerRouting>,
    pub categories: Vec<u32>,
    pub gates: Option<Vec<f32>>,
    pub sketch: Option<Sketch>,
    pub sketch_routed: bool,
    pub accumulate: bool,
    pub sample_scale: f32,
}

impl Setup {
    pub fn plain() -> Self {
        Self {
            routing: None,
            categories: Vec::new(),
            gates: None,
            sketch: None,
            sketch_routed: false,
            accumulate: false,
            sample_scale: 1.0,
        }
    }

    pub fn options(&self) -> Options<'_> {
        Options {
            routing: self.routing.as_ref().map(|layer| Routing {
                layer,
                categories: &self.categories,
                gates: self.gates.as_deref(),
            }),
            sketch: self.sketch,
            sketch_routed: self.sketch_routed,
            accumulate: self.accumulate,
            sample_scale: self.sample_scale,
        }
    }
}

/// A problem with everything it needs; one weight and one setup per layer.
#[derive(Clone, Debug)]
pub struct Case<T> {
    pub name: String,
    pub problem: Problem,
    pub x: Vec<T>,
    pub tokens: Vec<u32>,
    pub dy: Vec<T>,
    pub weights: Vec<Vec<T>>,
    pub layers: Vec<Setup>,
}

/// Deterministic test data.
pub struct Random(StdRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    pub fn normal(&mut self) -> f32 {
        self.0.sample(StandardNormal)
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn fill<T: Element>(&mut self, len: usize, mut value: impl FnMut(&mut Self) -> f32) -> Vec<T> {
        (0..len).map(|_| T::from_f32(value(self))).collect()
    }
}

impl<T: Element> Case<T> {
    fn build(
        name: &str,
        problem: Problem,
        seed: u64,
        mut value: impl FnMut(&mut Random) -> f32,
    ) -> Self {
        let mut random = Random::new(seed);
        let len = |of: &dyn Fn(usize) -> Range<usize>| match problem.samples() {
            0 => 0,
            samples => of(samples - 1).end,
        };
        let (x_len, dy_len) = (len(&|n| problem.x_of(n)), len(&|n| problem.dy_of(n)));
        let (mut x, mut tokens) = (Vec::new(), Vec::new());
        match &problem {
            Problem::Embedding(problem) => {
                tokens = (0..x_len).map(|_| random.below(problem.vocabulary()) as u32).collect();
            }
            _ => x = random.fill(x_len, &mut value),
        }
        let dy = random.fill(dy_len, &mut value);
        let shapes = problem.layers();
        let weights = shapes.iter().map(|s| random.fill(s.weights(), &mut value)).collect();
        let layers = vec![Setup::plain(); shapes.len()];
        Self { name: name.into(), problem, x, tokens, dy, weights, layers }
    }

    /// The same with every number's absolute value, so that nothing cancels.
    pub fn without_signs(&self) -> Self {
        let magnitudes =
            |of: &[T]| of.iter().map(|v| T::from_f32(v.to_f32().abs())).collect::<Vec<_>>();
        Self {
            x: magnitudes(&self.x),
            dy: magnitudes(&self.dy),
            weights: self.weights.iter().map(|of| magnitudes(of)).collect(),
            ..self.clone()
        }
    }

    /// Normally distributed data.
    pub fn random(name: &str, problem: Problem, seed: u64) -> Self {
        Self::build(name, problem, seed, Random::normal)
    }

    /// Data for which every intermediate of every way to compute is exact in f32.
    pub fn exact(name: &str, problem: Problem, seed: u64) -> Self {
        let widest = problem.layers().iter().map(|s| s.outputs().max(s.inputs())).max();
        let large = widest > Some(40) || matches!(problem, Problem::Lora(_));
        let values: &[f32] = if large { &[-1.0, 0.0, 1.0] } else { &[-2.0, -1.0, 0.0, 1.0, 2.0] };
        let mut case = Self::build(name, problem, seed, |random| random.one_of(values));
        if let Problem::Norm(norm) = &case.problem {
            case.x = exactly_normalised(norm, seed);
        }
        case
    }

    /// The same batch without the samples that are not in `keep`.
    pub fn of_samples(&self, keep: &[usize]) -> Self {
        fn pick<V: Copy>(
            values: &[V],
            of: impl Fn(usize) -> Range<usize>,
            keep: &[usize],
        ) -> Vec<V> {
            keep.iter().flat_map(|&n| values[of(n)].to_vec()).collect()
        }
        let mut case = self.clone();
        case.problem = self.problem.of_samples(keep);
        match &self.problem {
            Problem::Embedding(_) => {
                case.tokens = pick(&self.tokens, |n| self.problem.x_of(n), keep);
            }
            _ => case.x = pick(&self.x, |n| self.problem.x_of(n), keep),
        }
        case.dy = pick(&self.dy, |n| self.problem.dy_of(n), keep);
        for setup in &mut case.layers {
            if setup.routing.is_some() {
                setup.categories = keep.iter().map(|&n| setup.categories[n]).collect();
            }
            setup.gates = setup.gates.as_ref().map(|g| keep.iter().map(|&n| g[n]).collect());
        }
        case
    }
}

/// Numbers whose mean is an integer and whose deviation a power of two, set by set.
fn exactly_normalised<T: Element>(norm: &Norm, seed: u64) -> Vec<T> {
    let mut random = Random::new(seed ^ 0x6e6f_726d);
    let mut x = Vec::new();
    for n in 0..norm.rows().samples() {
        let sample = norm.rows().range(n).len() * norm.features();
        let set = match norm.kind() {
            NormKind::Layer | NormKind::Rms => norm.features(),
            NormKind::Group { groups } => sample / groups,
        };
        for _ in 0..sample.checked_div(set).unwrap_or(0) {
            let (mean, deviation) = match norm.kind() {
                NormKind::Rms => (0.0, random.one_of(&[1.0, 2.0, 4.0])),
                _ => (random.one_of(&[-1.0, 0.0, 3.0]), random.one_of(&[1.0, 2.0, 4.0])),
            };
            assert!(set.is_power_of_two() && set > 1, "no exact data for {norm:?}");
            let shift = random.below(set);
            x.extend((0..set).map(|at| {
                let sign = if (at * 5 + shift) % set < set / 2 { -1.0 } else { 1.0 };
                T::from_f32(mean + sign * deviation)
            }));
        }
    }
    x
}
