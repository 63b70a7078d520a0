//! What must hold between runs.

use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options};
use gradroute::problem::Linear;
use gradroute::reference::Reference;
use gradroute::routing::LayerRouting;

use crate::support::case::{Case, Problem, Random};
use crate::support::catalogue::representatives;
use crate::support::run::{Ask, Outputs, Tested, run_all, run_on};
use crate::support::weights::{CATEGORIES, Pattern, exact_sketches, record, sketches};

const PATTERNS: [Pattern; 6] = [
    Pattern::Fractional,
    Pattern::Outputs,
    Pattern::Inputs,
    Pattern::Both,
    Pattern::Cross,
    Pattern::Mixed,
];

/// Exact cases of every op and pattern; where that takes long, every other pattern with each op.
fn exact_cases<B: Tested>(mut check: impl FnMut(Case<f32>)) {
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        for (p, pattern) in PATTERNS.into_iter().enumerate() {
            if B::SLOW && (c + p) % 2 == 1 {
                continue;
            }
            let mut case = Case::exact(&name, problem.clone(), c as u64);
            pattern.apply(&mut case, (c * 7 + p) as u64);
            record(&mut case.layers, exact_sketches()[(c + p) % 5], false, 1.0);
            check(case);
        }
    }
}

fn with_routes(case: &Case<f32>, routes: &[Vec<f32>]) -> Case<f32> {
    let mut case = case.clone();
    for (setup, route) in case.layers.iter_mut().zip(routes) {
        let old = setup.routing.take().unwrap();
        let flow = old.flow_table().to_vec();
        let new = LayerRouting::new(old.regions().clone(), CATEGORIES, route.clone(), flow);
        setup.routing = Some(new.unwrap());
    }
    case
}

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `dw` under the sum of two tables is the sum of the `dw` under each.
pub fn linear_in_the_weights<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let mut random = Random::new(5);
    exact_cases::<B>(|case| {
        let mut table = || -> Vec<Vec<f32>> {
            let len = |setup: &crate::support::case::Setup| {
                setup.routing.as_ref().unwrap().route_table().len()
            };
            let dyadic = [0.0, 1.0, -0.5, 0.25, 2.0];
            let draw = |len| (0..len).map(|_| random.one_of(&dyadic)).collect();
            case.layers.iter().map(len).map(draw).collect()
        };
        let (one, two) = (table(), table());
        let both: Vec<_> = one.iter().zip(&two).map(|(a, b)| add(a, b)).collect();
        let [one, two, both] =
            [one, two, both].map(|table| run_all(&mut backend, &with_routes(&case, &table)));
        for ((one, two), both) in one.layers.iter().zip(&two.layers).zip(&both.layers) {
            assert_eq!(add(&one.dw, &two.dw), both.dw, "{}", case.name);
            assert_eq!(add(&one.db, &two.db), both.db, "{}", case.name);
        }
    });
}

/// A batch of several categories gives the sum of the batches of one category each, and every
/// sample's own outputs.
pub fn mixed_batch_is_the_sum<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    exact_cases::<B>(|case| {
        let together = run_all(&mut backend, &case);
        let mut parts: Vec<(Vec<usize>, Outputs)> = Vec::new();
        for category in 0..CATEGORIES as u32 {
            let of = |&n: &usize| case.layers[0].categories[n] == category;
            let keep: Vec<usize> = (0..case.problem.samples()).filter(of).collect();
            let part = run_all(&mut backend, &case.of_samples(&keep));
            parts.push((keep, part));
        }
        for (l, layer) in together.layers.iter().enumerate() {
            let zeros = (vec![0.0; layer.dw.len()], vec![0.0; layer.db.len()]);
            let (dw, db) = parts.iter().fold(zeros, |(dw, db), (_, part)| {
                (add(&dw, &part.layers[l].dw), add(&db, &part.layers[l].db))
            });
            assert_eq!((&layer.dw, &layer.db), (&dw, &db), "{}", case.name);
            for (keep, part) in &parts {
                let part = &part.layers[l];
                let k = layer.sketch.len() / case.problem.samples();
                for (at, &n) in keep.iter().enumerate() {
                    assert_eq!(layer.sq_norm[n], part.sq_norm[at], "{}", case.name);
                    let sketch = |all: &[f32], n: usize| all[n * k..(n + 1) * k].to_vec();
                    assert_eq!(sketch(&layer.sketch, n), sketch(&part.sketch, at));
                }
            }
        }
        if together.dx.is_empty() {
            return;
        }
        for (keep, part) in &parts {
            let dx = keep.iter().flat_map(|&n| together.dx[case.problem.x_of(n)].to_vec());
            assert_eq!(dx.collect::<Vec<_>>(), part.dx, "{}", case.name);
        }
    });
}

/// A route weight of 0, or a closed gate, is the batch without the sample.
pub fn weight_zero_is_absence<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    exact_cases::<B>(|mut case| {
        let away = |n: usize| n % 3 == 1;
        let keep: Vec<usize> = (0..case.problem.samples()).filter(|&n| !away(n)).collect();
        for by_gate in [true, false] {
            for setup in &mut case.layers {
                let samples = setup.categories.len();
                let zero = |n: usize| if away(n) { 0.0 } else { 1.0 };
                setup.gates = by_gate.then(|| (0..samples).map(zero).collect());
                if !by_gate {
                    let old = setup.routing.take().unwrap();
                    let regions = old.regions().len();
                    let mut route = old.route_table().to_vec();
                    route[regions..2 * regions].fill(0.0); // category 1
                    let new = (old.regions().clone(), old.flow_table().to_vec());
                    let new = LayerRouting::new(new.0, CATEGORIES, route, new.1);
                    setup.routing = Some(new.unwrap());
                    let other = |n: usize| (n as u32 % 2) * 2;
                    let category = |n| if away(n) { 1 } else { other(n) };
                    setup.categories = (0..samples).map(category).collect();
                }
            }
            let with = run_all(&mut backend, &case);
            let without = run_all(&mut backend, &case.of_samples(&keep));
            for (with, without) in with.layers.iter().zip(&without.layers) {
                assert_eq!(with.dw, without.dw, "{}, gate {by_gate}", case.name);
                assert_eq!(with.db, without.db, "{}, gate {by_gate}", case.name);
                assert_eq!(with.touched, without.touched, "{}, gate {by_gate}", case.name);
            }
        }
    });
}

/// The same bits on repeat, on a fresh backend, after other work, and with any number of threads.
pub fn same_bits_on_repeat<B: Tested>(make: impl Fn() -> B + Sync) {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = [pool(1), pool(2), pool(3)];
    let mut backend = make();
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        for (p, pattern) in PATTERNS.into_iter().enumerate() {
            let mut case = Case::<f32>::random(&name, problem.clone(), c as u64);
            pattern.apply(&mut case, p as u64);
            record(&mut case.layers, sketches()[(c + p) % 6], p % 2 == 0, 1.5);
            let first = run_all(&mut backend, &case);
            first.assert_same_bits(&run_all(&mut backend, &case), &case.name);
            first.assert_same_bits(&run_all(&mut make(), &case), &case.name);
            // A device knows nothing of the host's threads.
            for pool in pools.iter().filter(|_| !B::SLOW) {
                let again = pool.install(|| run_all(&mut make(), &case));
                let context = format!("{}, {} threads", case.name, pool.current_num_threads());
                first.assert_same_bits(&again, &context);
            }
        }
    }
}

/// Each output alone is the same as asked for with all others.
pub fn alone_as_together<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    exact_cases::<B>(|case| {
        let together = run_all(&mut backend, &case);
        for ask in Ask::each() {
            let alone = run_on(&mut backend, &case, ask, &|_| f32::NAN);
            let pairs = alone.buffers().into_iter().zip(together.buffers());
            for ((name, alone), (_, together)) in pairs.filter(|((_, alone), _)| !alone.is_empty())
            {
                assert_eq!(alone, together, "{}: {name}", case.name);
            }
            for (alone, together) in alone.layers.iter().zip(&together.layers) {
                assert!(!ask.touched || alone.touched == together.touched, "{}", case.name);
            }
        }
        let nothing = run_on(&mut backend, &case, Ask::default(), &|_| f32::NAN);
        assert!(nothing.buffers().iter().all(|(_, values)| values.is_empty()));
    });
}

/// A frozen layer beside a LoRA branch adds its own `dx`, and nothing else.
pub fn frozen_beside_a_branch<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    exact_cases::<B>(|case| {
        let Problem::Lora(lora) = &case.problem else { return };
        let [rows, features, outputs] =
            [lora.rows().total(), lora.in_features(), lora.out_features()];
        let frozen = Linear::new(lora.rows().clone(), features, outputs).unwrap();
        let base: Vec<f32> = (0..features * outputs).map(|at| (at % 5) as f32 - 2.0).collect();
        let inputs = LinearInputs { x: &case.x, dy: &case.dy, weight: Some(&base) };
        let mut beside = vec![f32::NAN; rows * features];
        let (options, nothing) = (Options::default(), LayerOutputs::default());
        Reference.linear(&frozen, &options, inputs, Some(&mut beside), nothing).unwrap();
        let alone = run_all(&mut backend, &case);
        let mut case = case.clone();
        case.weights.push(base);
        let mut whole = run_all(&mut backend, &case);
        assert_eq!(whole.dx, add(&alone.dx, &beside), "{}", case.name);
        whole.dx = alone.dx.clone();
        assert_eq!(whole, alone, "{}", case.name);
    });
}
