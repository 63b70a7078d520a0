//! The reference's f64 functions against the oracle.

use gradroute::ops::{ConvInputs, EmbeddingInputs, LinearInputs, LoraInputs, NormInputs};
use gradroute::reference::{self, Gradients};

use crate::support::case::{Case, Problem};
use crate::support::catalogue;
use crate::support::compare::{assert_close, length};
use crate::support::oracle::expect;
use crate::support::weights::{Pattern, record, sketches};

/// Everything the f64 functions return for a case.
pub fn gradients(case: &Case<f32>) -> Vec<Gradients> {
    let (x, dy, weight) = (&case.x[..], &case.dy[..], Some(&case.weights[0][..]));
    let options = case.layers[0].options();
    let all = match &case.problem {
        Problem::Linear(p) => reference::linear(p, &options, LinearInputs { x, dy, weight }),
        Problem::Conv2d(p) => reference::conv2d(p, &options, ConvInputs { x, dy, weight }),
        Problem::Norm(p) => reference::norm(p, &options, NormInputs { x, dy, weight }),
        Problem::Embedding(p) => {
            reference::embedding(p, &options, EmbeddingInputs { tokens: &case.tokens, dy })
        }
        Problem::Lora(p) => {
            let base = case.weights.get(2).map(Vec::as_slice);
            let inputs = LoraInputs { x, dy, a: &case.weights[0], b: &case.weights[1], base };
            let options = [&options, &case.layers[1].options()];
            return reference::lora(p, options, inputs).unwrap().into();
        }
    };
    vec![all.unwrap()]
}

/// Relative error of at most 1e-13, but for the two-sided sketch's f32 signs.
#[test]
fn materialised_gradients_agree() {
    let problems = [
        catalogue::everything::<gradroute::reference::Reference>(false),
        catalogue::small::<gradroute::reference::Reference>(),
    ]
    .concat();
    for (c, (name, problem)) in problems.into_iter().enumerate() {
        for turn in 0..2 {
            let mut case = Case::<f32>::random(&name, problem.clone(), 77 + c as u64);
            Pattern::ALL[(c + 5 * turn) % 11].apply(&mut case, c as u64);
            record(&mut case.layers, sketches()[(c / 5 + turn) % 6], turn == 1, 1.75);
            let (got, want) = (gradients(&case), expect::<f64, _>(&case));
            assert_close(&case.name, &got[0].dx, &want.dx, want.dx_size, 1, 1e-13);
            for (got, want) in got.iter().zip(&want.layers) {
                for (output, got, want, bound) in [
                    ("dw", &got.dw, &want.dw, 1e-13),
                    ("db", &got.db, &want.db, 1e-13),
                    ("sq_norm", &got.sq_norm, &want.sq_norm, 1e-13),
                    ("sq_norm_bias", &got.sq_norm_bias, &want.sq_norm_bias, 1e-13),
                    ("sketch", &got.sketch, &want.sketch, 1e-6),
                ] {
                    let what = format!("{}: {output}", case.name);
                    assert_close(&what, got, want, length(want), 1, bound);
                }
                assert_eq!(got.touched, want.touched, "{}", case.name);
            }
        }
    }
}
