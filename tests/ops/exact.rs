//! Data on which every way to compute is exact: results must match bit for bit.

use gradroute::problem::{Dtype, Element, Rows};
use gradroute::projection::SketchKind;

use crate::support::case::{Case, Problem};
use crate::support::catalogue::{self, Named};
use crate::support::compare::assert_exact;
use crate::support::oracle::expect;
use crate::support::run::{Ask, Tested, run_all, run_on};
use crate::support::weights::{Pattern, exact_sketches, record};

/// Every op over its whole catalogue.
pub fn every_op<B: Tested, T: Element>(make: impl Fn() -> B) {
    let turns = match B::SLOW {
        // The kernels in f16 are those in bf16 but for the format.
        true if T::DTYPE == Dtype::F16 => [1, 1],
        true => [2, 2],
        false => [11, 3],
    };
    all::<B, T>(make(), catalogue::everything::<B>(true), turns);
}

/// Every size in `0..=3`. A normalisation that small is not exact: `close` has it.
pub fn small_sizes<B: Tested, T: Element>(make: impl Fn() -> B) {
    let exact = |(_, problem): &Named| !matches!(problem, Problem::Norm(_));
    let problems = catalogue::small::<B>().into_iter().filter(exact).collect();
    all::<B, T>(make(), problems, if B::SLOW { [1, 1] } else { [11, 3] });
}

/// Single rows, with count sketches of what every pattern makes of them, and of what it finds.
pub fn single_rows<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let (name, problem) = catalogue::linear(Rows::new([0, 1, 1, 2, 3]).unwrap(), 40, 9, true);
    for (c, pattern) in Pattern::ALL.into_iter().enumerate() {
        for routed in [false, true] {
            let mut case = Case::<f32>::exact(&name, problem.clone(), c as u64);
            pattern.apply(&mut case, c as u64);
            record(&mut case.layers, SketchKind::Count { buckets: 64 }, routed, 0.5);
            check(&mut backend, case);
        }
    }
}

/// A convolution meets the first number of the 11 patterns, any other problem the second: in turn, so
/// that all of them meet all.
fn all<B: Tested, T: Element>(mut backend: B, problems: Vec<Named>, patterns: [usize; 2]) {
    for (c, (name, problem)) in problems.into_iter().enumerate() {
        let turns = patterns[usize::from(!matches!(problem, Problem::Conv2d(_)))];
        for turn in 0..turns {
            let mut case = Case::<T>::exact(&name, problem.clone(), c as u64);
            Pattern::ALL[(c + turn * (turns % 5 + 1)) % 11].apply(&mut case, (c + turn) as u64);
            let kind = exact_sketches()[(c / 3 + 2 * turn) % 5];
            record(&mut case.layers, kind, turn % 2 == 1, [1.0, 4.0, 0.5][turn % 3]);
            check(&mut backend, case);
        }
    }
}

/// Overwriting NaN in f32, and adding to something in the input's format.
fn check<B: Tested, T: Element>(backend: &mut B, mut case: Case<T>) {
    let want = expect::<f64, T>(&case);
    assert_exact(&case, &run_all(backend, &case), &want, false, &|_| 0.0);
    case.layers.iter_mut().for_each(|setup| setup.accumulate = true);
    let before = |at: usize| (at % 7) as f32 - 3.0;
    let ask = Ask { native: true, ..Ask::all() };
    assert_exact(&case, &run_on(backend, &case, ask, &before), &want, true, &before);
}
