//! Random data: relative errors, and the bounds on half-precision inputs.

use gradroute::problem::{Conv2d, Conv2dSpec, Dtype, Element, Padding, Rows};

use crate::support::case::{Case, Problem};
use crate::support::catalogue::{self, Named};
use crate::support::compare::{Metrics, assert_all_close, assert_close, length};
use crate::support::oracle::{Expected, expect};
use crate::support::run::{Ask, Outputs, Tested, run_all, run_on};
use crate::support::weights::{Pattern, record, sketches};

/// Relative error of everything in f32.
const BOUND: f64 = 1e-5;

/// Two orders of summation in f32 differ by about this much, whatever the inputs' format.
const ORDER: f64 = 5e-7;

/// Every op over its whole catalogue, in f32.
pub fn every_op<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    cases::<B, f32>(catalogue::everything::<B>(false), 2, |case| {
        assert_all_close(case, &run_all(&mut backend, case), &expect::<f64, _>(case), BOUND);
    });
}

/// Every size in `0..=3`, in f32.
pub fn small_sizes<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let turns = if B::SLOW { 1 } else { 2 };
    cases::<B, f32>(catalogue::small::<B>(), turns, |case| {
        let mut want = expect::<f64, _>(case);
        // A gradient of one or two elements may cancel; then an error in it is measured against
        // its terms. A normalised activation is no such sum.
        if !matches!(case.problem, Problem::Norm(_)) {
            let terms = expect::<f64, _>(&case.without_signs());
            for (want, terms) in want.layers.iter_mut().zip(terms.layers) {
                want.dw_size = terms.dw_size;
            }
        }
        assert_all_close(case, &run_all(&mut backend, case), &want, BOUND);
    });
}

/// Sizes of a real network.
pub fn large<B: Tested>(make: impl Fn() -> B) {
    let conv = Conv2dSpec {
        samples: 2,
        in_channels: 320,
        out_channels: 320,
        size: [32, 32],
        kernel: [3, 3],
        padding: Padding::symmetric(1, 1),
        bias: true,
        ..Conv2dSpec::default()
    };
    let problems = vec![
        catalogue::linear(Rows::new([0, 1024, 1101, 1101, 1500]).unwrap(), 640, 1280, true),
        ("large conv2d".into(), Problem::Conv2d(Conv2d::new(conv).unwrap())),
    ];
    let mut backend = make();
    cases::<B, f32>(problems, 2, |case| {
        assert_all_close(case, &run_all(&mut backend, case), &expect::<f64, _>(case), BOUND);
    });
}

/// Calls `check` with every problem under so many patterns, convolutions under all of them.
fn cases<B: Tested, T: Element>(
    problems: Vec<Named>,
    turns: usize,
    mut check: impl FnMut(&Case<T>),
) {
    for (c, (name, problem)) in problems.into_iter().enumerate() {
        let turns = if matches!(problem, Problem::Conv2d(_)) && !B::SLOW { 11 } else { turns };
        for turn in 0..turns {
            let mut case = Case::<T>::random(&name, problem.clone(), 1000 + c as u64);
            Pattern::ALL[(c + turn * (turns % 5 + 1)) % 11].apply(&mut case, (c + turn) as u64);
            let kind = sketches()[(c / 5 + 5 * turn) % 6];
            record(&mut case.layers, kind, turn % 2 == 1, [1.0, 2.5][turn / 2 % 2]);
            check(&case);
        }
    }
}

/// Inputs in `T`: an error of at most 2 × (`dx`) or 3 × (`dw`, `db`, sketch) that of plain f32
/// loops over the same inputs, rounded to the same output format.
pub fn half_precision<B: Tested, T: Element>(make: impl Fn() -> B) {
    let mut backend = make();
    let mut at = 0_usize;
    // The kernels in f16 are those in bf16 but for the format.
    let turns = if B::SLOW && T::DTYPE == Dtype::F16 { 1 } else { 2 };
    cases::<B, T>(catalogue::everything::<B>(false), turns, |case| {
        let (want, plain) = (expect::<f64, _>(case), expect::<f32, _>(case));
        // Of a problem's turns, one each; which comes first changes from problem to problem.
        let formats = if B::SLOW { vec![(at / 2 + at) % 2 == 1] } else { vec![false, true] };
        at += 1;
        for native in formats {
            let ask = Ask { native, ..Ask::all() };
            let got = run_on(&mut backend, case, ask, &|_| f32::NAN);
            hold(case, &got, &want, &plain, native);
        }
    });
}

fn hold<T: Element>(
    case: &Case<T>,
    got: &Outputs,
    want: &Expected,
    plain: &Expected,
    native: bool,
) {
    let same = |values: &[f64], rounds: bool| -> Vec<f64> {
        let round = |value: &f64| T::from_f32(*value as f32).to_f32().into();
        if rounds { values.iter().map(round).collect() } else { values.to_vec() }
    };
    let bounded = |what: String, got: &[f32], want: &[f64], plain: &[f64], size, times| {
        let got: Vec<f64> = got.iter().map(|&value| value.into()).collect();
        let bound = times * Metrics::new(plain, want, size).relative + ORDER;
        assert_close(&what, &got, want, size, 1, bound);
    };
    let name = &case.name;
    if !got.dx.is_empty() {
        let plain = same(&plain.dx, true);
        bounded(format!("{name}: dx"), &got.dx, &want.dx, &plain, want.dx_size, 2.0);
    }
    for (l, got) in got.layers.iter().enumerate() {
        let (want, plain) = (&want.layers[l], &plain.layers[l]);
        for (output, got, want, plain) in [
            ("dw", &got.dw, &want.dw, same(&plain.dw, native)),
            ("db", &got.db, &want.db, same(&plain.db, native)),
            ("sketch", &got.sketch, &want.sketch, same(&plain.sketch, false)),
        ] {
            let what = format!("{name}, native {native}: layer {l} {output}");
            bounded(what, got, want, &plain, length(want), 3.0);
        }
        for (got, want) in [(&got.sq_norm, &want.sq_norm), (&got.sq_norm_bias, &want.sq_norm_bias)]
        {
            let got: Vec<f64> = got.iter().map(|&value| value.into()).collect();
            let what = format!("{name}: layer {l} squared norms");
            assert_close(&what, &got, want, length(want), 1, BOUND);
        }
        assert_eq!(got.touched, want.touched, "{name}: layer {l} touched");
    }
}
