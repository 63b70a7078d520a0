//! Materialised per-sample gradients, written from the definitions and apart from
//! `gradroute::reference`: dot products instead of outer products, explicitly padded images,
//! explicit Jacobians, one-hot rows, whole projection matrices, painted region maps.
//!
//! In f64 it says what is right; in f32 it is the same-precision reference for the bounds on
//! half-precision inputs.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use gradroute::problem::{Conv2d, Element, GradientShape, Norm, NormKind, PaddingMode};
use gradroute::projection::{Sketch, SketchKind, philox4x32};
use gradroute::routing::Region;

use super::case::{Case, Problem, Setup};
use super::compare::length;

/// A precision to compute in.
pub trait Real:
    Copy
    + From<f32>
    + Into<f64>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    fn root(self) -> Self;
}

impl Real for f32 {
    fn root(self) -> Self {
        self.sqrt()
    }
}

impl Real for f64 {
    fn root(self) -> Self {
        self.sqrt()
    }
}

/// What a layer's outputs should be.
#[derive(Clone, Debug, Default)]
pub struct ExpectedLayer {
    pub dw: Vec<f64>,
    /// Length of `dw`; what an error in it is measured against.
    pub dw_size: f64,
    pub db: Vec<f64>,
    pub sq_norm: Vec<f64>,
    pub sq_norm_bias: Vec<f64>,
    pub sketch: Vec<f64>,
    pub touched: Vec<bool>,
}

/// What a case's outputs should be.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub dx: Vec<f64>,
    /// Length of `dx` before terms cancel: what an error in it is measured against.
    pub dx_size: f64,
    pub layers: Vec<ExpectedLayer>,
}

/// A row-major matrix.
#[derive(Clone, Debug)]
struct Matrix<R> {
    columns: usize,
    values: Vec<R>,
}

impl<R: Real> Matrix<R> {
    fn of(rows: usize, columns: usize, value: impl Fn(usize, usize) -> R) -> Self {
        let values = (0..rows * columns).map(|at| value(at / columns, at % columns)).collect();
        Self { columns, values }
    }

    fn rows(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    fn at(&self, row: usize, column: usize) -> R {
        self.values[row * self.columns + column]
    }
}

fn zero<R: Real>() -> R {
    R::from(0.0)
}

fn sum<R: Real>(terms: impl Iterator<Item = R>) -> R {
    let mut total = zero();
    terms.for_each(|term| total += term);
    total
}

fn wide<R: Real, T: Element>(values: &[T]) -> Vec<R> {
    values.iter().map(|value| R::from(value.to_f32())).collect()
}

/// One sample: a gradient matrix per layer, the bias as last column, and its `dx`.
struct Sample<R> {
    gradients: Vec<Matrix<R>>,
    dx: Vec<R>,
    dx_size: f64,
}

/// Every output of a case, computed in `R`.
pub fn expect<R: Real, T: Element>(case: &Case<T>) -> Expected {
    let shapes = case.problem.layers();
    let mut expected = Expected::default();
    let mut dx_size = 0.0;
    for (shape, setup) in shapes.iter().zip(&case.layers) {
        let regions = setup.routing.as_ref().map_or(1, |routing| routing.regions().len());
        expected.layers.push(ExpectedLayer {
            dw: vec![0.0; shape.weights()],
            db: vec![0.0; shape.biases()],
            touched: vec![false; regions],
            ..Default::default()
        });
    }
    let mut sums: Vec<Matrix<R>> =
        shapes.iter().map(|s| Matrix::of(s.outputs(), s.columns(), |_, _| zero())).collect();
    for n in 0..case.problem.samples() {
        let sample = materialise::<R, T>(case, n);
        expected.dx.extend(sample.dx.iter().map(|&dx| dx.into()));
        dx_size += sample.dx_size;
        for (l, (shape, g)) in shapes.iter().zip(&sample.gradients).enumerate() {
            let to = &mut expected.layers[l];
            record(to, &mut sums[l], *shape, &case.layers[l], n, case.problem.rows(n), g);
        }
    }
    expected.dx_size = f64::sqrt(dx_size);
    for ((shape, sums), to) in shapes.iter().zip(&sums).zip(&mut expected.layers) {
        for o in 0..shape.outputs() {
            for i in 0..shape.inputs() {
                to.dw[weight_position(&case.problem, *shape, o, i)] = sums.at(o, i).into();
            }
            if shape.bias() {
                to.db[o] = sums.at(o, shape.inputs()).into();
            }
        }
        to.dw_size = length(&to.dw);
    }
    expected
}

/// Where a matrix element stands in the weight.
fn weight_position(problem: &Problem, shape: GradientShape, o: usize, i: usize) -> usize {
    match problem {
        // [O, C / groups, kh, kw] from channels last.
        Problem::Conv2d(conv) => {
            let [kh, kw] = conv.spec().kernel;
            let channels = conv.spec().in_channels / conv.spec().groups;
            let (c, s, r) = (i % channels, i / channels % kw, i / channels / kw);
            ((o * channels + c) * kh + r) * kw + s
        }
        Problem::Embedding(_) => i * shape.outputs() + o,
        _ => o * shape.inputs() + i,
    }
}

fn record<R: Real>(
    to: &mut ExpectedLayer,
    sums: &mut Matrix<R>,
    shape: GradientShape,
    setup: &Setup,
    n: usize,
    rows: usize,
    g: &Matrix<R>,
) {
    let weights = route_weights(shape, setup, n);
    let routed = Matrix::of(shape.outputs(), shape.columns(), |o, i| {
        let weight = weights[o * shape.columns() + i];
        if weight == 0.0 { zero() } else { R::from(weight) * g.at(o, i) }
    });
    sums.values.iter_mut().zip(&routed.values).for_each(|(sum, term)| *sum += *term);
    let scale = R::from(setup.sample_scale);
    let square = |o: usize, i: usize| scale * scale * g.at(o, i) * g.at(o, i);
    let outputs = 0..shape.outputs();
    let weight_squares = outputs.clone().flat_map(|o| (0..shape.inputs()).map(move |i| (o, i)));
    to.sq_norm.push(sum(weight_squares.map(|(o, i)| square(o, i))).into());
    if shape.bias() {
        to.sq_norm_bias.push(sum(outputs.map(|o| square(o, shape.inputs()))).into());
    }
    if let Some(sketch) = &setup.sketch {
        let of = if setup.sketch_routed { &routed } else { g };
        to.sketch.extend(project(sketch, of, shape).into_iter().map(|v| (scale * v).into()));
    }
    match &setup.routing {
        None => to.touched[0] |= rows > 0,
        Some(routing) => {
            for region in 0..routing.regions().len() {
                let weight = routing.route(setup.categories[n], region) * gate(setup, n);
                to.touched[region] |= rows > 0 && weight != 0.0;
            }
        }
    }
}

fn gate(setup: &Setup, n: usize) -> f32 {
    setup.gates.as_ref().map_or(1.0, |gates| gates[n])
}

/// Which elements `[outputs, features]` a region owns, painted rectangle by rectangle.
fn painted(shape: GradientShape, rectangles: &[Region]) -> Vec<bool> {
    let mut owns = vec![false; shape.outputs() * shape.features()];
    for rectangle in rectangles {
        for o in rectangle.outputs.clone() {
            let row = &mut owns[o * shape.features()..(o + 1) * shape.features()];
            row[rectangle.inputs.clone()].fill(true);
        }
    }
    owns
}

/// Route weights `[outputs, columns]` of a sample.
fn route_weights(shape: GradientShape, setup: &Setup, n: usize) -> Vec<f32> {
    let (outputs, columns, features) = (shape.outputs(), shape.columns(), shape.features());
    let Some(routing) = &setup.routing else { return vec![1.0; outputs * columns] };
    let weight = |region: usize| routing.route(setup.categories[n], region) * gate(setup, n);
    let mut weights = vec![weight(0); outputs * columns];
    for (r, rectangles) in routing.regions().owned().iter().enumerate() {
        let owns = painted(shape, rectangles);
        for o in 0..outputs {
            let owned = &owns[o * features..(o + 1) * features];
            for tap in 0..shape.taps() {
                for i in (0..features).filter(|&i| owned[i]) {
                    weights[o * columns + tap * features + i] = weight(r + 1);
                }
            }
            if shape.bias() && owned.iter().all(|&owned| owned) {
                weights[o * columns + shape.inputs()] = weight(r + 1);
            }
        }
    }
    weights
}

/// Flow weight of a sample for each input feature.
fn flow_weights(shape: GradientShape, setup: &Setup, n: usize) -> Vec<f32> {
    let Some(routing) = &setup.routing else { return vec![1.0; shape.features()] };
    let weight = |region: usize| routing.flow(setup.categories[n], region);
    let mut weights = vec![weight(0); shape.features()];
    for (r, rectangles) in routing.regions().owned().iter().enumerate() {
        let owns = painted(shape, rectangles);
        let column = |i: usize| (0..shape.outputs()).all(|o| owns[o * shape.features() + i]);
        if !owns.iter().all(|&owned| owned) {
            for i in (0..shape.features()).filter(|&i| column(i)) {
                weights[i] = weight(r + 1);
            }
        }
    }
    weights
}

fn weigh<R: Real>(weight: f32, value: R) -> R {
    if weight == 0.0 { zero() } else { R::from(weight) * value }
}

/// `Pᵀ G P`, or one hashed addition per element.
fn project<R: Real>(sketch: &Sketch, g: &Matrix<R>, shape: GradientShape) -> Vec<R> {
    let key = sketch.key();
    match sketch.kind() {
        SketchKind::TwoSided { outputs, inputs } => {
            let signs = |side: u32, rows: usize, k: usize| {
                let value = R::from(1.0) / R::from(k as f32).root();
                let random = move |row: usize, j: usize| {
                    let counter = [row as u32, (j / 128) as u32, side, 0];
                    philox4x32(counter, key)[j % 128 / 32] & (1 << (j % 32)) != 0
                };
                // Orthonormal rows where they fit, with room for a bias that is not there.
                let room = if side == 1 { shape.outputs() } else { shape.inputs() + 1 };
                let fits = [1, 2, 4, 8, 16, 32].contains(&k) && room <= k;
                Matrix::of(rows, k, move |row, j| {
                    let negative = if fits {
                        let walsh = (0..5).filter(|bit| (row & j) >> bit & 1 == 1).count() % 2 == 1;
                        random(0, j) ^ random(0, 32 + row) ^ walsh
                    } else {
                        random(row, j)
                    };
                    if negative { zero::<R>() - value } else { value }
                })
            };
            let p_o = signs(1, shape.outputs(), outputs);
            let p_i = signs(2, shape.columns(), inputs);
            let left = Matrix::of(outputs, shape.columns(), |a, i| {
                sum((0..shape.outputs()).map(|o| p_o.at(o, a) * g.at(o, i)))
            });
            let both = Matrix::of(outputs, inputs, |a, b| {
                sum((0..shape.columns()).map(|i| left.at(a, i) * p_i.at(i, b)))
            });
            both.values
        }
        SketchKind::Count { buckets } => {
            let mut out = vec![zero::<R>(); buckets];
            for o in 0..shape.outputs() {
                for i in 0..shape.columns() {
                    let [r0, r1, r2, r3] = philox4x32([o as u32 / 8, i as u32 / 8, 0, 0], key);
                    let base = 2 * ((u64::from(r2) * (buckets as u64 / 2)) >> 32);
                    let e = 8 * (o % 8) + i % 8;
                    let bucket = (base as usize + (e ^ (r3 as usize % 64))) % buckets;
                    let word = if e < 32 { r0 } else { r1 };
                    let negative = word & (1 << (e % 32)) != 0;
                    let value = g.at(o, i);
                    out[bucket] += if negative { zero::<R>() - value } else { value };
                }
            }
            out
        }
    }
}

fn materialise<R: Real, T: Element>(case: &Case<T>, n: usize) -> Sample<R> {
    let problem = &case.problem;
    let x: Vec<R> = match problem {
        Problem::Embedding(_) => Vec::new(),
        _ => wide(&case.x[problem.x_of(n)]),
    };
    let dy: Vec<R> = wide(&case.dy[problem.dy_of(n)]);
    let weight: Vec<R> = wide(&case.weights[0]);
    let shape = problem.layers()[0];
    let flow = flow_weights(shape, &case.layers[0], n);
    match problem {
        Problem::Linear(_) => {
            let rows = problem.rows(n);
            let g = outer_sum(shape, rows, &x, &dy);
            let dx = Matrix::of(rows, shape.inputs(), |r, i| {
                let terms = (0..shape.outputs())
                    .map(|o| dy[r * shape.outputs() + o] * weight[o * shape.inputs() + i]);
                weigh(flow[i], sum(terms))
            });
            Sample::new(vec![g], dx.values)
        }
        Problem::Conv2d(conv) => convolution(conv, &x, &dy, &weight, &flow),
        Problem::Norm(norm) => normalisation(norm, problem.rows(n), &x, &dy, &weight, flow[0]),
        Problem::Embedding(embedding) => {
            let tokens = &case.tokens[problem.x_of(n)];
            let one_hot = Matrix::of(tokens.len(), embedding.vocabulary(), |r, v| {
                R::from(if tokens[r] as usize == v { 1.0 } else { 0.0 })
            });
            let g = outer_sum(shape, tokens.len(), &one_hot.values, &dy);
            Sample::new(vec![g], Vec::new())
        }
        Problem::Lora(lora) => {
            // Both factors from the gradient of their product, M = s · dYᵀ X.
            let (rank, features) = (lora.rank(), lora.in_features());
            let b: Vec<R> = wide(&case.weights[1]);
            let scaled: Vec<R> = dy.iter().map(|&dy| R::from(lora.scale()) * dy).collect();
            let outputs = lora.out_features();
            let rows = problem.rows(n);
            let product = Matrix::of(outputs, features, |o, i| {
                sum((0..rows).map(|r| scaled[r * outputs + o] * x[r * features + i]))
            });
            let inner = flow_weights(problem.layers()[1], &case.layers[1], n);
            let of_a = Matrix::of(rank, features, |j, i| {
                weigh(inner[j], sum((0..outputs).map(|o| b[o * rank + j] * product.at(o, i))))
            });
            let of_b = Matrix::of(outputs, rank, |o, j| {
                sum((0..features).map(|i| product.at(o, i) * weight[j * features + i]))
            });
            let dx = Matrix::of(rows, features, |r, i| {
                let through = |j: usize| {
                    let reached = (0..outputs).map(|o| scaled[r * outputs + o] * b[o * rank + j]);
                    weigh(inner[j], sum(reached)) * weight[j * features + i]
                };
                weigh(flow[i], sum((0..rank).map(through)))
            });
            Sample::new(vec![of_a, of_b], dx.values)
        }
    }
}

impl<R: Real> Sample<R> {
    fn new(gradients: Vec<Matrix<R>>, dx: Vec<R>) -> Self {
        let dx_size = dx.iter().map(|&dx| Into::<f64>::into(dx).powi(2)).sum();
        Self { gradients, dx, dx_size }
    }
}

/// `dYᵀ [X 1]`, element by element.
fn outer_sum<R: Real>(shape: GradientShape, rows: usize, x: &[R], dy: &[R]) -> Matrix<R> {
    let (outputs, inputs) = (shape.outputs(), shape.inputs());
    Matrix::of(outputs, shape.columns(), |o, i| {
        let x = |r: usize| if i == inputs { R::from(1.0) } else { x[r * inputs + i] };
        sum((0..rows).map(|r| dy[r * outputs + o] * x(r)))
    })
}

/// Convolution over an image that is padded in memory.
fn convolution<R: Real>(conv: &Conv2d, x: &[R], dy: &[R], weight: &[R], flow: &[f32]) -> Sample<R> {
    let (spec, shape, pad) = (conv.spec(), conv.gradient(), conv.spec().padding);
    let [height, width] = spec.size;
    let [kh, kw] = spec.kernel;
    let [out_height, out_width] = conv.out_size();
    let (tall, broad) = (height + pad.top + pad.bottom, width + pad.left + pad.right);
    let channels = spec.in_channels / spec.groups;
    // Pixel of the image that stands at a place of the padded one.
    let source = |c: usize, row: usize, column: usize| {
        let row = row as isize - pad.top as isize;
        let column = column as isize - pad.left as isize;
        let (h, w) = (height as isize, width as isize);
        let inside = (0..h).contains(&row) && (0..w).contains(&column);
        let there = inside || (spec.padding_mode == PaddingMode::Circular && h * w > 0);
        there.then(|| {
            (c * height + row.rem_euclid(h) as usize) * width + column.rem_euclid(w) as usize
        })
    };
    let mut padded = vec![zero::<R>(); spec.in_channels * tall * broad];
    let mut padded_dx = padded.clone();
    let place = |c: usize, row: usize, column: usize| (c * tall + row) * broad + column;
    let each =
        |c: usize| (0..tall).flat_map(move |row| (0..broad).map(move |column| (c, row, column)));
    for (c, row, column) in (0..spec.in_channels).flat_map(each) {
        if let Some(pixel) = source(c, row, column) {
            padded[place(c, row, column)] = x[pixel];
        }
    }
    let mut g = Matrix::of(spec.out_channels, shape.columns(), |_, _| zero::<R>());
    for o in 0..spec.out_channels {
        let group = o * spec.groups / spec.out_channels;
        let dy = &dy[o * out_height * out_width..(o + 1) * out_height * out_width];
        for (c, r, s) in
            (0..channels).flat_map(|c| (0..kh).flat_map(move |r| (0..kw).map(move |s| (c, r, s))))
        {
            let w = weight[((o * channels + c) * kh + r) * kw + s];
            let seen = |at: usize| {
                let row = at / out_width * spec.stride[0] + r * spec.dilation[0];
                let column = at % out_width * spec.stride[1] + s * spec.dilation[1];
                place(group * channels + c, row, column)
            };
            g.values[o * shape.columns() + (r * kw + s) * channels + c] =
                sum((0..dy.len()).map(|at| dy[at] * padded[seen(at)]));
            for (at, &dy) in dy.iter().enumerate() {
                padded_dx[seen(at)] += dy * w;
            }
        }
        if shape.bias() {
            g.values[o * shape.columns() + shape.inputs()] = sum(dy.iter().copied());
        }
    }
    let mut dx = vec![zero::<R>(); x.len()];
    for (c, row, column) in (0..spec.in_channels).flat_map(each) {
        if let Some(pixel) = source(c, row, column) {
            dx[pixel] += padded_dx[place(c, row, column)];
        }
    }
    for (pixel, dx) in dx.iter_mut().enumerate() {
        *dx = weigh(flow[pixel / (height * width) % channels], *dx);
    }
    Sample::new(vec![g], dx)
}

/// Normalisation by the Jacobian of every set written out.
fn normalisation<R: Real>(
    norm: &Norm,
    rows: usize,
    x: &[R],
    dy: &[R],
    gamma: &[R],
    flow: f32,
) -> Sample<R> {
    let (features, shape) = (norm.features(), norm.gradient());
    let centred = norm.kind() != NormKind::Rms;
    let channel = |at: usize| match norm.kind() {
        NormKind::Group { .. } => at / rows,
        _ => at % features,
    };
    let sets: Vec<Vec<usize>> = match norm.kind() {
        NormKind::Group { groups } => (0..groups)
            .map(|group| {
                let first = group * (features / groups);
                (0..x.len())
                    .filter(|&at| (first..first + features / groups).contains(&channel(at)))
                    .collect()
            })
            .collect(),
        _ => (0..rows).map(|r| (r * features..(r + 1) * features).collect()).collect(),
    };
    let mut g = Matrix::of(features, shape.columns(), |_, _| zero::<R>());
    let mut dx = vec![zero::<R>(); x.len()];
    let mut dx_size = 0.0;
    for set in sets.iter().filter(|set| !set.is_empty()) {
        let count = R::from(set.len() as f32);
        let mean = if centred { sum(set.iter().map(|&at| x[at])) / count } else { zero() };
        let square = sum(set.iter().map(|&at| (x[at] - mean) * (x[at] - mean))) / count;
        let inverse = R::from(1.0) / (square + R::from(norm.eps())).root();
        let hat = |at: usize| (x[at] - mean) * inverse;
        for &at in set {
            g.values[channel(at) * shape.columns()] += dy[at] * hat(at);
            if shape.bias() {
                g.values[channel(at) * shape.columns() + 1] += dy[at];
            }
            // d hat(to) / d x(at)
            let jacobian = |to: usize| {
                let same = if to == at { R::from(1.0) } else { zero() };
                let shift = if centred { R::from(1.0) / count } else { zero() };
                inverse * (same - shift - hat(to) * hat(at) / count)
            };
            let through = set.iter().map(|&to| dy[to] * gamma[channel(to)] * jacobian(to));
            dx[at] = weigh(flow, sum(through));
            let direct: f64 = weigh(flow, dy[at] * gamma[channel(at)] * inverse).into();
            dx_size += direct * direct;
        }
    }
    Sample { gradients: vec![g], dx, dx_size }
}
