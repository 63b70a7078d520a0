//! Comparisons that say what is wrong and where.

use gradroute::problem::Element;

use super::case::Case;
use super::oracle::Expected;
use super::run::Outputs;

/// How two buffers differ.
#[derive(Clone, Copy, Debug)]
pub struct Metrics {
    /// `‖got − want‖ / size`.
    pub relative: f64,
    /// Cosine of the angle between them; 1 when both are 0.
    pub cosine: f64,
    /// `Σ (got − want) / Σ |want|`: an error that does not average out.
    pub bias: f64,
    /// Position of the largest difference.
    pub worst: usize,
}

impl Metrics {
    /// `size` is what the error is measured against, normally `‖want‖`.
    pub fn new(got: &[f64], want: &[f64], size: f64) -> Self {
        let (mut square, mut signed, mut absolute) = (0.0, 0.0, 0.0);
        let (mut dot, mut got_square, mut want_square) = (0.0, 0.0, 0.0);
        let (mut worst, mut largest) = (0, -1.0);
        for (at, (&g, &w)) in got.iter().zip(want).enumerate() {
            let error = g - w;
            // A NaN is the worst of all.
            let distance = if error.is_nan() { f64::INFINITY } else { error.abs() };
            if distance > largest {
                (worst, largest) = (at, distance);
            }
            square += error * error;
            signed += error;
            absolute += w.abs();
            dot += g * w;
            got_square += g * g;
            want_square += w * w;
        }
        let ratio = |over: f64, under: f64| if over == 0.0 { 0.0 } else { over / under };
        let lengths = f64::sqrt(got_square * want_square);
        let cosine = if got_square == 0.0 && want_square == 0.0 { 1.0 } else { dot / lengths };
        Self { relative: ratio(square.sqrt(), size), cosine, bias: ratio(signed, absolute), worst }
    }
}

pub fn length(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Panics when the relative error exceeds `bound`, with every metric and the coordinates of the
/// worst element, `width` elements to a row.
pub fn assert_close(what: &str, got: &[f64], want: &[f64], size: f64, width: usize, bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let metrics = Metrics::new(got, want, size);
    // Where terms cancel, only the error itself means something.
    let cancels = size > length(want) * 1.001;
    let aligned = want.is_empty() || metrics.cosine > 1.0 - bound;
    if metrics.relative <= bound && (cancels || (aligned && metrics.bias.abs() <= bound)) {
        return;
    }
    let at = metrics.worst;
    panic!(
        "{what}: {metrics:?} exceeds {bound:e}; worst at [{}, {}]: {:?} instead of {:?}",
        at / width.max(1),
        at % width.max(1),
        got[at],
        want[at],
    );
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Holds a backend's outputs to the oracle's: `bound` on the relative error of each whole
/// gradient, of each sample's norms and of each sample's sketch.
pub fn assert_all_close<T: Element>(case: &Case<T>, got: &Outputs, want: &Expected, bound: f64) {
    let name = &case.name;
    if !got.dx.is_empty() {
        let size = want.dx_size;
        assert_close(&format!("{name}: dx"), &widen(&got.dx), &want.dx, size, 1, bound);
    }
    for (l, (got, want)) in got.layers.iter().zip(&want.layers).enumerate() {
        let shape = case.problem.layers()[l];
        let what = |output: &str| format!("{name}: layer {l} {output}");
        let close = |output: &str, got: &[f64], want: &[f64], width: usize| {
            assert_close(&what(output), got, want, length(want), width, bound);
        };
        let (dw, width) = (widen(&got.dw), shape.inputs());
        assert_close(&what("dw"), &dw, &want.dw, want.dw_size, width, bound);
        close("db", &widen(&got.db), &want.db, 1);
        for (output, got, want) in [
            ("sq_norm", &got.sq_norm, &want.sq_norm),
            ("sq_norm_bias", &got.sq_norm_bias, &want.sq_norm_bias),
        ] {
            assert_eq!(got.len(), want.len(), "{}", what(output));
            for (n, (&got, &want)) in got.iter().zip(want).enumerate() {
                close(&format!("{output}[{n}]"), &[f64::from(got)], &[want], 1);
            }
        }
        let k = case.layers[l].sketch.map_or(1, |sketch| sketch.len());
        assert_eq!(got.sketch.len(), want.sketch.len(), "{}", what("sketch"));
        for (n, (got, want)) in got.sketch.chunks(k).zip(want.sketch.chunks(k)).enumerate() {
            close(&format!("sketch of sample {n}"), &widen(got), want, k);
        }
        assert_eq!(got.touched, want.touched, "{}", what("touched"));
    }
}

/// Holds a backend's outputs to the oracle's bit for bit; a zero may have either sign.
/// `before` is what `dw` and `db` are added to.
pub fn assert_exact<T: Element>(
    case: &Case<T>,
    got: &Outputs,
    want: &Expected,
    native: bool,
    before: &dyn Fn(usize) -> f32,
) {
    let equal = |what: &str, got: &[f32], want: Vec<f32>| {
        assert_eq!(got.len(), want.len(), "{}: length of {what}", case.name);
        for (at, (&got, want)) in got.iter().zip(want).enumerate() {
            assert!(got == want, "{}: {what}[{at}] is {got:?}, not {want:?}", case.name);
        }
    };
    let plain = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
    let rounded = |value: f32| T::from_f32(value).to_f32();
    let added = |values: &[f64]| {
        let sum = |(at, value): (usize, f32)| match native {
            true => rounded(rounded(before(at)) + value),
            false => before(at) + value,
        };
        plain(values).into_iter().enumerate().map(sum).collect::<Vec<_>>()
    };
    if !got.dx.is_empty() {
        equal("dx", &got.dx, plain(&want.dx).into_iter().map(rounded).collect());
    }
    for (l, (got, want)) in got.layers.iter().zip(&want.layers).enumerate() {
        let what = |output: &str| format!("layer {l} {output}");
        equal(&what("dw"), &got.dw, added(&want.dw));
        equal(&what("db"), &got.db, added(&want.db));
        equal(&what("sq_norm"), &got.sq_norm, plain(&want.sq_norm));
        equal(&what("sq_norm_bias"), &got.sq_norm_bias, plain(&want.sq_norm_bias));
        equal(&what("sketch"), &got.sketch, plain(&want.sketch));
        assert_eq!(got.touched, want.touched, "{}: {}", case.name, what("touched"));
    }
}
