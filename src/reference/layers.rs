//! Each layer's per-sample gradient matrix and input gradient.

use super::gradients::{Gradients, flow, weigh};
use crate::ops::{ConvInputs, EmbeddingInputs, LinearInputs, LoraInputs, NormInputs, Options};
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm, NormKind};

fn widen<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.to_f32())).collect()
}

pub(super) fn linear_of<T: Element>(
    problem: &Linear,
    options: &Options,
    inputs: LinearInputs<T>,
) -> Gradients {
    let weight = inputs.weight.map(widen);
    linear(problem, options, &widen(inputs.x), &widen(inputs.dy), weight.as_deref())
}

fn linear(
    problem: &Linear,
    options: &Options,
    x: &[f64],
    dy: &[f64],
    weight: Option<&[f64]>,
) -> Gradients {
    let shape = problem.gradient();
    let (outputs, inputs, columns) = (shape.outputs(), shape.inputs(), shape.columns());
    let mut all = Gradients::zeros(shape, options);
    for n in 0..problem.rows().samples() {
        let rows = problem.rows().range(n);
        let mut g = vec![0.0; outputs * columns];
        for r in rows.clone() {
            for o in 0..outputs {
                for i in 0..inputs {
                    g[o * columns + i] += dy[r * outputs + o] * x[r * inputs + i];
                }
                if shape.bias() {
                    g[o * columns + inputs] += dy[r * outputs + o];
                }
            }
        }
        all.push(shape, options, n, rows.len(), &g, |o, i| o * inputs + i);
        let Some(weight) = weight else { continue };
        for r in rows {
            let mut dx = vec![0.0; inputs];
            for o in 0..outputs {
                for i in 0..inputs {
                    dx[i] += dy[r * outputs + o] * weight[o * inputs + i];
                }
            }
            all.dx.extend((0..inputs).map(|i| weigh(flow(options, n, i), dx[i])));
        }
    }
    all
}

pub(super) fn lora<T: Element>(
    problem: &Lora,
    options: [&Options; 2],
    inputs: LoraInputs<T>,
) -> [Gradients; 2] {
    let (rank, features) = (problem.rank(), problem.in_features());
    let (x, a, b) = (widen(inputs.x), widen(inputs.a), widen(inputs.b));
    let mut hidden = vec![0.0; problem.rows().total() * rank];
    for r in 0..problem.rows().total() {
        for j in 0..rank {
            for i in 0..features {
                hidden[r * rank + j] += x[r * features + i] * a[j * features + i];
            }
        }
    }
    let scale = f64::from(problem.scale());
    let dy: Vec<f64> = widen(inputs.dy).into_iter().map(|dy| scale * dy).collect();
    let of_b = linear(&problem.b(), options[1], &hidden, &dy, Some(&b));
    let mut of_a = linear(&problem.a(), options[0], &x, &of_b.dx, Some(&a));
    if let Some(base) = inputs.base.map(widen) {
        let outputs = problem.out_features();
        for (at, dx) in of_a.dx.iter_mut().enumerate() {
            let (r, i) = (at / features, at % features);
            for o in 0..outputs {
                *dx += f64::from(inputs.dy[r * outputs + o].to_f32()) * base[o * features + i];
            }
        }
    }
    [of_a, of_b]
}

pub(super) fn conv2d<T: Element>(
    problem: &Conv2d,
    options: &Options,
    inputs: ConvInputs<T>,
) -> Gradients {
    let (spec, shape) = (problem.spec(), problem.gradient());
    let ([height, width], [out_height, out_width]) = (spec.size, problem.out_size());
    let (pixels, positions) = (height * width, out_height * out_width);
    let (per_group, columns) = (problem.channels_per_group(), shape.columns());
    let (x, dy, weight) = (widen(inputs.x), widen(inputs.dy), inputs.weight.map(widen));
    let mut all = Gradients::zeros(shape, options);
    for n in 0..spec.samples {
        let mut g = vec![0.0; spec.out_channels * columns];
        let mut dx = vec![0.0; spec.in_channels * pixels];
        for o in 0..spec.out_channels {
            let first = o / (spec.out_channels / spec.groups) * per_group;
            for at in 0..positions {
                let dy = dy[(n * spec.out_channels + o) * positions + at];
                if shape.bias() {
                    g[o * columns + shape.inputs()] += dy;
                }
                for tap in 0..spec.kernel[0] * spec.kernel[1] {
                    let row = problem.source(0, at / out_width, tap / spec.kernel[1]);
                    let column = problem.source(1, at % out_width, tap % spec.kernel[1]);
                    let (Some(row), Some(column)) = (row, column) else { continue };
                    for c in 0..per_group {
                        let pixel = (first + c) * pixels + row * width + column;
                        let i = tap * per_group + c;
                        g[o * columns + i] += dy * x[n * spec.in_channels * pixels + pixel];
                        if let Some(weight) = &weight {
                            dx[pixel] += dy * weight[problem.weight_index(o, i)];
                        }
                    }
                }
            }
        }
        all.push(shape, options, n, positions, &g, |o, i| problem.weight_index(o, i));
        if weight.is_some() {
            let feature = |pixel: usize| pixel / pixels % per_group;
            let weighed = |(pixel, dx)| weigh(flow(options, n, feature(pixel)), dx);
            all.dx.extend(dx.into_iter().enumerate().map(weighed));
        }
    }
    all
}

pub(super) fn embedding<T: Element>(
    problem: &Embedding,
    options: &Options,
    inputs: EmbeddingInputs<T>,
) -> Gradients {
    let shape = problem.gradient();
    let (features, vocabulary) = (problem.features(), problem.vocabulary());
    let dy = widen(inputs.dy);
    let mut all = Gradients::zeros(shape, options);
    for n in 0..problem.rows().samples() {
        let rows = problem.rows().range(n);
        let mut g = vec![0.0; features * vocabulary];
        for r in rows.clone() {
            for f in 0..features {
                g[f * vocabulary + inputs.tokens[r] as usize] += dy[r * features + f];
            }
        }
        all.push(shape, options, n, rows.len(), &g, |f, token| token * features + f);
    }
    all
}

pub(super) fn norm<T: Element>(
    problem: &Norm,
    options: &Options,
    inputs: NormInputs<T>,
) -> Gradients {
    let (shape, columns) = (problem.gradient(), problem.gradient().columns());
    let (x, dy, weight) = (widen(inputs.x), widen(inputs.dy), inputs.weight.map(widen));
    let mut all = Gradients::zeros(shape, options);
    for n in 0..problem.rows().samples() {
        let rows = problem.rows().range(n);
        // A sample's elements are contiguous in every layout, and so is each set of them that
        // is normalised together.
        let sample = rows.start * problem.features()..rows.end * problem.features();
        let (set, positions) = match problem.kind() {
            NormKind::Layer | NormKind::Rms => (problem.features(), 1),
            NormKind::Group { groups } => (sample.len() / groups, rows.len()),
        };
        let mut g = vec![0.0; problem.features() * columns];
        for start in sample.clone().step_by(set.max(1)) {
            let channel = |at: usize| (start + at - sample.start) / positions % problem.features();
            let (x, dy) = (&x[start..start + set], &dy[start..start + set]);
            let (normalised, inverse) = normalise(problem, x);
            for at in 0..set {
                g[channel(at) * columns] += dy[at] * normalised[at];
                if shape.bias() {
                    g[channel(at) * columns + 1] += dy[at];
                }
            }
            let Some(weight) = &weight else { continue };
            let dn: Vec<f64> = (0..set).map(|at| dy[at] * weight[channel(at)]).collect();
            let mean = if problem.kind() == NormKind::Rms { 0.0 } else { average(&dn) };
            let slope =
                average(&dn.iter().zip(&normalised).map(|(d, n)| d * n).collect::<Vec<_>>());
            all.dx.extend((0..set).map(|at| {
                weigh(flow(options, n, 0), inverse * (dn[at] - mean - normalised[at] * slope))
            }));
        }
        all.push(shape, options, n, rows.len(), &g, |channel, _| channel);
    }
    all
}

/// The normalised numbers and the factor they were multiplied by.
fn normalise(problem: &Norm, x: &[f64]) -> (Vec<f64>, f64) {
    let mean = if problem.kind() == NormKind::Rms { 0.0 } else { average(x) };
    let square = average(&x.iter().map(|x| (x - mean) * (x - mean)).collect::<Vec<_>>());
    let inverse = 1.0 / (square + f64::from(problem.eps())).sqrt();
    (x.iter().map(|x| (x - mean) * inverse).collect(), inverse)
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
