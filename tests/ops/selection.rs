//! A weight of exactly 0 selects: what is routed away may hold anything.

use std::ops::Range;

use gradroute::problem::Element;
use gradroute::routing::LayerRouting;

use crate::support::case::{Case, Problem, Setup};
use crate::support::catalogue::representatives;
use crate::support::run::{Ask, Tested, run_all, run_on};
use crate::support::weights::{CATEGORIES, Pattern, record, sketches};

/// The category that is routed away.
const AWAY: u32 = 1;

/// Sets the weights of category [`AWAY`] in some regions.
fn set_weights<T: Element>(case: &mut Case<T>, regions: Range<usize>, route: f32, flow: f32) {
    for setup in &mut case.layers {
        set_weights_of(setup, regions.clone(), route, flow);
    }
}

/// The same of one layer.
fn set_weights_of(setup: &mut Setup, regions: Range<usize>, route: f32, flow: f32) {
    let old = setup.routing.take().unwrap();
    let first = AWAY as usize * old.regions().len();
    let of = first + regions.start..first + regions.end.min(old.regions().len());
    let (mut routes, mut flows) = (old.route_table().to_vec(), old.flow_table().to_vec());
    routes[of.clone()].fill(route);
    flows[of].fill(flow);
    let new = LayerRouting::new(old.regions().clone(), CATEGORIES, routes, flows);
    setup.routing = Some(new.unwrap());
}

/// The same case with NaN and infinities wherever the routed-away samples stand.
fn poison<T: Element>(case: &Case<T>) -> Case<T> {
    let mut case = case.clone();
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(T::from_f32);
    for n in away(&case) {
        for (at, dy) in case.dy[case.problem.dy_of(n)].iter_mut().enumerate() {
            *dy = bad[at % 3];
        }
        if !matches!(case.problem, Problem::Embedding(_)) {
            case.x[case.problem.x_of(n)].fill(bad[0]);
        }
    }
    case
}

fn away<T>(case: &Case<T>) -> Vec<usize> {
    let categories = &case.layers[0].categories;
    (0..categories.len()).filter(|&n| categories[n] == AWAY).collect()
}

/// `dw`, `db` and the other samples' outputs keep their bits; a flow weight of 0 gives zeros.
pub fn routed_away_samples<B: Tested, T: Element>(make: impl Fn() -> B) {
    let mut backend = make();
    let gradients = Ask { dx: true, dw: true, db: true, touched: true, ..Ask::default() };
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        for pattern in [Pattern::Fractional, Pattern::Outputs, Pattern::Inputs, Pattern::Mixed] {
            for by_gate in [false, true] {
                let mut case = Case::<T>::random(&name, problem.clone(), c as u64);
                pattern.apply(&mut case, c as u64);
                record(&mut case.layers, sketches()[c % 6], true, 1.0);
                set_weights(&mut case, 0..9, if by_gate { 1.0 } else { 0.0 }, 0.0);
                let gone = away(&case);
                assert!(!gone.is_empty() && gone.len() < case.problem.samples());
                for setup in case.layers.iter_mut().filter(|_| by_gate) {
                    let open = |n: usize| if gone.contains(&n) { 0.0 } else { 0.5 };
                    setup.gates = Some((0..setup.categories.len()).map(open).collect());
                }
                let bad = poison(&case);
                for ask in [Ask::all(), gradients] {
                    let clean = run_on(&mut backend, &case, ask, &|_| f32::NAN);
                    let mut dirty = run_on(&mut backend, &bad, ask, &|_| f32::NAN);
                    // What the routed-away samples say of themselves may be anything, but the
                    // sketch of what they changed is of nothing.
                    for (dirty, clean) in dirty.layers.iter_mut().zip(&clean.layers) {
                        for &n in gone.iter().filter(|_| ask.sketch) {
                            let k = clean.sketch.len() / case.problem.samples();
                            let own = &dirty.sketch[n * k..(n + 1) * k];
                            assert!(own.iter().all(|&number| number == 0.0), "{}", case.name);
                            dirty.sq_norm[n] = clean.sq_norm[n];
                            if !clean.sq_norm_bias.is_empty() {
                                dirty.sq_norm_bias[n] = clean.sq_norm_bias[n];
                            }
                            let zeros = clean.sketch[n * k..(n + 1) * k].to_vec();
                            dirty.sketch[n * k..(n + 1) * k].copy_from_slice(&zeros);
                        }
                    }
                    clean.assert_same_bits(&dirty, &format!("{}, gate {by_gate}", case.name));
                    let stopped = |&n: &usize| {
                        dirty.dx.is_empty()
                            || dirty.dx[case.problem.x_of(n)].iter().all(|&dx| dx == 0.0)
                    };
                    assert!(gone.iter().all(stopped), "{}: flow weight 0", case.name);
                }
            }
        }
    }
}

/// A sample that trains one factor of a LoRA branch and not the other: what is asked beside the gradients
/// changes none of them.
pub fn one_factor_alone<B: Tested, T: Element>(make: impl Fn() -> B) {
    let mut backend = make();
    let loras = representatives::<B>().into_iter();
    let loras = loras.filter(|(_, problem)| matches!(problem, Problem::Lora(_)));
    for (c, (name, problem)) in loras.enumerate() {
        for away_from in 0..2 {
            let mut case = Case::<T>::random(&name, problem.clone(), c as u64);
            Pattern::Fractional.apply(&mut case, c as u64);
            set_weights(&mut case, 0..9, 0.5, 1.0);
            set_weights_of(&mut case.layers[away_from], 0..9, 0.0, 1.0);
            let alone = Ask { dw: true, ..Ask::default() };
            let alone = run_on(&mut backend, &case, alone, &|_| f32::NAN);
            let all = run_all(&mut backend, &case);
            for (alone, all) in alone.layers.iter().zip(&all.layers) {
                // Sums may be taken in another order; a sample's share is far more.
                let largest = all.dw.iter().fold(0.0_f32, |most, dw| most.max(dw.abs()));
                let close = |(alone, all): (&f32, &f32)| (alone - all).abs() <= 1e-4 * largest;
                let same = alone.dw.iter().zip(&all.dw).all(close);
                assert!(same, "{name}, away from {away_from}");
            }
        }
    }
}

/// A sample that may not train an owned region leaves it alone, while the rest of the layer
/// shows its NaN.
pub fn owned_regions<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        for pattern in [Pattern::Outputs, Pattern::Inputs] {
            let mut case = Case::<f32>::random(&name, problem.clone(), c as u64);
            pattern.apply(&mut case, c as u64);
            set_weights(&mut case, 0..1, 1.0, 1.0);
            set_weights(&mut case, 1..9, 0.0, 1.0);
            let clean = run_all(&mut backend, &case);
            let dirty = run_all(&mut backend, &poison(&case));
            for (l, shape) in case.problem.layers().into_iter().enumerate() {
                let regions = case.layers[l].routing.as_ref().unwrap().regions();
                let (mut owned, mut poisoned) = (0, 0);
                for o in 0..shape.outputs() {
                    for i in 0..shape.inputs() {
                        let at = match &case.problem {
                            Problem::Conv2d(conv) => conv.weight_index(o, i),
                            Problem::Embedding(_) => i * shape.outputs() + o,
                            _ => o * shape.inputs() + i,
                        };
                        let (clean, dirty) = (clean.layers[l].dw[at], dirty.layers[l].dw[at]);
                        if regions.region_at(o, i % shape.features()) == 0 {
                            poisoned += usize::from(!dirty.is_finite());
                        } else {
                            let what = format!("{}: layer {l} dw[{o}, {i}]", case.name);
                            assert_eq!(clean.to_bits(), dirty.to_bits(), "{what}");
                            owned += 1;
                        }
                    }
                }
                assert!(owned > 0, "{}: layer {l}", case.name);
                // A norm's one input cannot be split, and a token may not occur.
                let seen = poisoned > 0 || owned == shape.weights();
                let embedding = matches!(case.problem, Problem::Embedding(_));
                assert!(seen || embedding, "{}: layer {l}", case.name);
            }
        }
    }
}

/// Where every sample is routed away, adding changes no bit and overwriting gives zeros.
pub fn nothing_to_add<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let before = |at: usize| [1.5, -0.0, 3e-39, -7.0, 0.0][at % 5];
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        let mut case = Case::<f32>::random(&name, problem, c as u64);
        Pattern::Zeros.apply(&mut case, 0);
        case.layers.iter_mut().for_each(|setup| setup.categories.fill(AWAY));
        let case = poison(&case);
        let overwritten = run_all(&mut backend, &case);
        let mut adding = case.clone();
        adding.layers.iter_mut().for_each(|setup| setup.accumulate = true);
        let added = run_on(&mut backend, &adding, Ask::all(), &before);
        for (overwritten, added) in overwritten.layers.iter().zip(&added.layers) {
            for (zeros, kept) in [(&overwritten.dw, &added.dw), (&overwritten.db, &added.db)] {
                assert!(zeros.iter().all(|&value| value == 0.0), "{}", case.name);
                let same = |(at, value): (usize, &f32)| value.to_bits() == before(at).to_bits();
                assert!(kept.iter().enumerate().all(same), "{}", case.name);
            }
            assert!(!overwritten.touched[0] && !added.touched[0], "{}", case.name);
        }
        assert!(overwritten.dx.iter().all(|&dx| dx == 0.0), "{}", case.name);
    }
}
