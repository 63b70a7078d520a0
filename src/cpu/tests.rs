//! The backend against the reference, on integers bit for bit, and its workspace.

use super::{Cpu, LoraOperands};
use crate::Error;
use crate::ops::plan::{Request, plan_linear};
use crate::ops::{
    Backend, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, Options, ParamGrad, Routing,
};
use crate::problem::{Element, Linear, Lora, Rows};
use crate::projection::{Sketch, SketchKind};
use crate::reference::Reference;
use crate::routing::{LayerRouting, Region, RegionMap};
use half::bf16;

/// Small integers; sums of their products stay exact in `f32`.
fn integers<T: Element>(len: usize, step: usize) -> Vec<T> {
    (0..len).map(|at| T::from_f32(((at * step + at / 7) % 5) as f32 - 2.0)).collect()
}

/// Everything one layer can be asked for.
#[derive(Clone, Debug, PartialEq)]
struct Answers<T> {
    dx: Vec<T>,
    dw: Vec<f32>,
    db: Vec<f32>,
    norms: [Vec<f32>; 2],
    sketch: Vec<f32>,
    touched: Vec<bool>,
}

impl<T: Element> Answers<T> {
    /// NaN wherever nothing may be left; numbers where results are added.
    fn before(problem: &Linear, options: &Options) -> Self {
        let (shape, samples) = (problem.gradient(), problem.rows().samples());
        let start = if options.accumulate { 3.0 } else { f32::NAN };
        Self {
            dx: vec![T::from_f32(f32::NAN); problem.rows().total() * shape.inputs()],
            dw: vec![start; shape.weights()],
            db: vec![start; shape.outputs()],
            norms: [vec![f32::NAN; samples], vec![f32::NAN; samples]],
            sketch: vec![f32::NAN; samples * options.sketch.map_or(0, |sketch| sketch.len())],
            touched: vec![false; options.routing.map_or(1, |r| r.layer.regions().len())],
        }
    }

    fn outputs(&mut self, options: &Options) -> (&mut [T], LayerOutputs<'_, T>) {
        let [weights, biases] = &mut self.norms;
        let out = LayerOutputs {
            dw: Some(ParamGrad::F32(&mut self.dw)),
            db: Some(ParamGrad::F32(&mut self.db)),
            sq_norm: Some(weights),
            sq_norm_bias: Some(biases),
            sketch: options.sketch.is_some().then_some(&mut self.sketch[..]),
            touched: Some(&mut self.touched),
        };
        (&mut self.dx, out)
    }
}

fn linear<T: Element>(
    backend: &mut impl Backend,
    problem: &Linear,
    options: &Options,
) -> Answers<T> {
    let (rows, shape) = (problem.rows().total(), problem.gradient());
    let (x, dy) = (integers(rows * shape.inputs(), 3), integers(rows * shape.outputs(), 7));
    let weight = integers(shape.weights(), 11);
    let mut answers = Answers::before(problem, options);
    let (dx, out) = answers.outputs(options);
    let inputs = LinearInputs { x: &x, dy: &dy, weight: Some(&weight) };
    backend.linear::<T>(problem, options, inputs, Some(dx), out).unwrap();
    answers
}

/// Two regions that cut micro-blocks and tiles, four categories, gates.
fn routing(outputs: usize, inputs: usize) -> LayerRouting {
    let owned = vec![
        Region { outputs: outputs / 3..outputs / 2, inputs: 0..inputs },
        Region { outputs: 0..outputs, inputs: 0..inputs / 4 },
    ];
    let owned = owned.into_iter().filter(|r| !r.outputs.is_empty() && !r.inputs.is_empty());
    let disjoint = RegionMap::new(outputs, inputs, owned.clone().take(1).collect());
    let map = match RegionMap::new(outputs, inputs, owned.skip(1).collect()) {
        Ok(map) if outputs.is_multiple_of(2) => map,
        _ => disjoint.unwrap(),
    };
    let route = [1.0, 2.0, 0.0, 0.0, -1.0, 1.0, 0.5, 0.0];
    let flow = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0];
    let of =
        |table: [f32; 8]| table.chunks(2).flat_map(|pair| pair[..map.len()].to_vec()).collect();
    LayerRouting::new(map.clone(), 4, of(route), of(flow)).unwrap()
}

fn batches() -> Vec<Rows> {
    vec![
        Rows::new([0]).unwrap(),
        Rows::new([0, 0, 0]).unwrap(),
        Rows::uniform(7, 1).unwrap(),
        Rows::new([0, 3, 3, 4, 9, 11]).unwrap(),
        Rows::new([0, 70, 70, 71, 110]).unwrap(),
    ]
}

fn sketches() -> [Option<SketchKind>; 5] {
    [
        None,
        // Sides of powers of four have exact signs, so that integers stay integers.
        Some(SketchKind::TwoSided { outputs: 4, inputs: 16 }),
        Some(SketchKind::TwoSided { outputs: 16, inputs: 16 }),
        Some(SketchKind::Count { buckets: 64 }),
        Some(SketchKind::Count { buckets: 320 }),
    ]
}

fn every_option(mut check: impl FnMut(&Linear, &Options)) {
    for rows in batches() {
        for (outputs, inputs) in
            [(0, 3), (3, 0), (1, 1), (2, 9), (13, 20), (40, 33), (150, 130), (316, 256)]
        {
            every_option_of(&rows, [outputs, inputs], &mut check);
        }
    }
}

fn every_option_of(
    rows: &Rows,
    [outputs, inputs]: [usize; 2],
    check: &mut impl FnMut(&Linear, &Options),
) {
    let problem = Linear::new(rows.clone(), inputs, outputs).unwrap().with_bias(true);
    let layer = routing(outputs, inputs);
    let samples = rows.samples() as u32;
    let categories: Vec<u32> = (0..samples).map(|n| (n * n + 1) % 4).collect();
    let gates: Vec<f32> = (0..samples).map(|n| [1.0, 1.0, 0.0, 2.0][n as usize % 4]).collect();
    let routing = Routing { layer: &layer, categories: &categories, gates: Some(&gates) };
    for (at, kind) in sketches().into_iter().enumerate() {
        for routing in [None, Some(routing)] {
            let options = Options {
                routing,
                sketch: kind.map(|kind| Sketch::new(kind, 5, at as u32).unwrap()),
                sketch_routed: outputs % 3 == 1,
                accumulate: inputs.is_multiple_of(2),
                sample_scale: 2.0,
            };
            check(&problem, &options);
        }
    }
}

#[test]
fn integers_match_the_reference_bit_for_bit() {
    let mut cpu = Cpu::new();
    every_option(|problem, options| {
        let expected: Answers<f32> = linear(&mut Reference, problem, options);
        let given = linear(&mut cpu, problem, options);
        compare(&given, &expected, problem, options);
    });
}

/// Too many rows for sums of integers to stay exact.
#[test]
fn a_matrix_formed_in_one_piece_is_close_to_the_reference() {
    let rows = Rows::new([0, 600, 600, 1700]).unwrap();
    every_option_of(&rows, [150, 130], &mut |problem, options| {
        let (x, dy) = (noise(1700 * 130, 0.7), noise(1700 * 150, 0.3));
        let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
        let mut answers = [0, 1].map(|_| Answers::<f32>::before(problem, options));
        let [given, expected] = &mut answers;
        Cpu::new().linear(problem, options, inputs, None, given.outputs(options).1).unwrap();
        let out = expected.outputs(options).1;
        Reference.linear(problem, options, inputs, None, out).unwrap();
        let all = |it: &Answers<f32>| [it.dw.clone(), it.norms[0].clone(), it.sketch.clone()];
        for (given, expected) in all(given).iter().zip(&all(expected)) {
            let size = expected.iter().map(|b| b * b).sum::<f32>().sqrt();
            let apart = given.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            assert!(apart.sqrt() <= 1e-5 * size, "{apart} {size} {:?}", options.sketch);
        }
        assert_eq!(given.touched, expected.touched);
    });
}

#[test]
fn half_precision_matches_the_reference_bit_for_bit() {
    let mut cpu = Cpu::new();
    for rows in [Rows::uniform(3, 2).unwrap(), Rows::uniform(2, 50).unwrap()] {
        let problem = Linear::new(rows, 24, 17).unwrap().with_bias(true);
        let options = Options { sample_scale: 1.0, ..Options::default() };
        let expected: Answers<bf16> = linear(&mut Reference, &problem, &options);
        compare(&linear(&mut cpu, &problem, &options), &expected, &problem, &options);
    }
}

fn compare<T: Element>(
    given: &Answers<T>,
    expected: &Answers<T>,
    problem: &Linear,
    options: &Options,
) {
    let place = || {
        let shape = problem.gradient();
        let routed = options.routing.map(|routing| routing.layer.regions().owned().to_vec());
        format!(
            "{:?} {} × {} {:?} {routed:?}",
            problem.rows().offsets(),
            shape.outputs(),
            shape.inputs(),
            options.sketch
        )
    };
    assert!(given.dx == expected.dx, "dx, {}", place());
    assert!(given.dw == expected.dw, "dw, {}", place());
    assert!(given.db == expected.db, "db, {}", place());
    assert_eq!(given.norms, expected.norms, "{}", place());
    assert_eq!(given.sketch, expected.sketch, "{}", place());
    assert_eq!(given.touched, expected.touched, "{}", place());
}

#[test]
fn threads_and_workspace_leave_no_trace() {
    // The last is formed in one piece.
    for (rows, inputs, outputs) in [(90, 130, 150), (90, 256, 320), (1100, 130, 150)] {
        let problem = Linear::new(Rows::uniform(3, rows).unwrap(), inputs, outputs).unwrap();
        no_trace(&problem.with_bias(true));
    }
}

fn no_trace(problem: &Linear) {
    let (rows, shape) = (problem.rows().total(), problem.gradient());
    for kind in sketches() {
        let sketch = kind.map(|kind| Sketch::new(kind, 1, 2).unwrap());
        let options = Options { sketch, ..Options::default() };
        let (x, dy): (Vec<f32>, Vec<f32>) =
            (noise(rows * shape.inputs(), 0.7), noise(rows * shape.outputs(), 0.3));
        let weight = noise(shape.weights(), 0.9);
        let inputs = LinearInputs { x: &x, dy: &dy, weight: Some(&weight) };
        let answer = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut cpu = Cpu::new();
                let mut held = Vec::new();
                let mut answers = Answers::before(problem, &options);
                for _ in 0..3 {
                    let (dx, out) = answers.outputs(&options);
                    cpu.linear(problem, &options, inputs, Some(dx), out).unwrap();
                    held.push(cpu.workspace_bytes());
                }
                if threads == 1 {
                    assert!(held[0] > 0 && held.iter().all(|&bytes| bytes == held[0]), "{held:?}");
                    let plan = plan_linear(problem, Request::everything(), kind);
                    let off = plan.workspace_bytes.abs_diff(held[0]);
                    assert!(off < held[0] / 8, "{} planned, {held:?}", plan.workspace_bytes);
                }
                answers
            })
        };
        let one = answer(1);
        assert!(one == answer(2) && one == answer(5), "{kind:?}");
    }
}

fn noise(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|at| (at as f32 * step).sin()).collect()
}

#[test]
fn what_is_routed_away_is_not_read() {
    let rows = Rows::uniform(4, 40).unwrap();
    let problem = Linear::new(rows, 24, 16).unwrap();
    let layer = LayerRouting::new(RegionMap::whole(16, 24), 2, vec![0.0, 1.0], vec![0.0, 1.0]);
    let layer = layer.unwrap();
    let routing = Routing { layer: &layer, categories: &[0, 1, 0, 1], gates: None };
    let options = Options { routing: Some(routing), ..Options::default() };
    let (mut x, mut dy): (Vec<f32>, Vec<f32>) = (integers(160 * 24, 3), integers(160 * 16, 7));
    let weight = integers(16 * 24, 5);
    for norms in [false, true] {
        let mut expected = vec![0.0; 16 * 24];
        for poisoned in [false, true] {
            if poisoned {
                x[..40 * 24].fill(f32::NAN);
                dy[80 * 16..120 * 16].fill(f32::INFINITY);
            }
            let (mut dw, mut dx, mut sq_norm) =
                (vec![f32::NAN; 384], vec![f32::NAN; 160 * 24], [0.0; 4]);
            let out = LayerOutputs {
                dw: Some(ParamGrad::F32(&mut dw)),
                sq_norm: norms.then_some(&mut sq_norm[..]),
                ..LayerOutputs::default()
            };
            let inputs = LinearInputs { x: &x, dy: &dy, weight: Some(&weight) };
            Cpu::new().linear(&problem, &options, inputs, Some(&mut dx), out).unwrap();
            if poisoned {
                assert_eq!(dw, expected);
                assert!(dx[80 * 24..120 * 24].iter().all(|&dx| dx == 0.0));
                assert_eq!(norms, sq_norm[0].is_nan());
            }
            expected = dw;
        }
        x = integers(160 * 24, 3);
        dy = integers(160 * 16, 7);
    }
}

#[test]
fn lora_matches_the_reference() {
    let lora = Lora::new(Rows::new([0, 2, 2, 9, 12]).unwrap(), 24, 16, 4, 2.0).unwrap();
    let sketch = Some(Sketch::two_sided(4, 1, 1).unwrap());
    let options = Options { sketch, ..Options::default() };
    let (x, dy): (Vec<f32>, Vec<f32>) = (integers(12 * 24, 3), integers(12 * 16, 7));
    let (a, b) = (integers(4 * 24, 11), integers(16 * 4, 13));
    let base = integers(16 * 24, 17);
    let inputs = LoraInputs { x: &x, dy: &dy, a: &a, b: &b, base: None };
    let run = |backend: &mut dyn FnMut(&mut [f32], LoraOutputs<f32>)| {
        let mut of_a: Answers<f32> = Answers::before(&lora.a(), &options);
        let mut of_b: Answers<f32> = Answers::before(&lora.b(), &options);
        let (dx, mut a) = of_a.outputs(&options);
        let (_, mut b) = of_b.outputs(&options);
        (a.db, a.sq_norm_bias, b.db, b.sq_norm_bias) = (None, None, None, None);
        backend(dx, LoraOutputs { a, b });
        (
            of_a.dx,
            of_a.dw,
            of_a.norms[0].clone(),
            of_a.sketch,
            of_b.dw,
            of_b.norms[0].clone(),
            of_b.sketch,
        )
    };
    let both = [&options, &options];
    let mut answers = Vec::new();
    for base in [None, Some(&base[..])] {
        let inputs = LoraInputs { base, ..inputs };
        let reference = |dx: &mut [f32], out: LoraOutputs<f32>| {
            Reference.lora(&lora, both, inputs, Some(dx), out).unwrap();
        };
        let expected = run(&mut { reference });
        let given =
            run(&mut |dx, out| Cpu::new().lora(&lora, both, inputs, Some(dx), out).unwrap());
        assert_eq!(given, expected);
        answers.push(expected);
    }
    // The frozen layer has a part in `dx`, its own, and in nothing else.
    let (with, without) = (answers.pop().unwrap(), answers.pop().unwrap());
    let linear = Linear::new(lora.rows().clone(), 24, 16).unwrap();
    let mut beside = vec![0.0; 12 * 24];
    let frozen = LinearInputs { x: &x, dy: &dy, weight: Some(&base) };
    let nothing = LayerOutputs::default();
    Cpu::new().linear(&linear, &Options::default(), frozen, Some(&mut beside), nothing).unwrap();
    let sum: Vec<f32> = without.0.iter().zip(&beside).map(|(dx, beside)| dx + beside).collect();
    assert_eq!(with, (sum, without.1, without.2, without.3, without.4, without.5, without.6));
}

#[test]
fn a_lora_layers_forward_pass_is_the_sum_of_both() {
    let lora = Lora::new(Rows::new([0, 2, 2, 9, 12]).unwrap(), 24, 16, 4, 2.0).unwrap();
    let (x, a, b) = (integers(12 * 24, 3), integers(4 * 24, 11), integers(16 * 4, 13));
    let (base, bias) = (integers(16 * 24, 17), integers(16, 19));
    for bias in [None, Some(&bias[..])] {
        let operands = LoraOperands { x: &x, a: &a, b: &b, base: &base, bias };
        let mut y = vec![f32::NAN; 12 * 16];
        Cpu::new().lora_forward(&lora, operands, &mut y).unwrap();
        for (at, y) in y.iter().enumerate() {
            let (r, o) = (at / 16, at % 16);
            let dot =
                |w: &[f32]| -> f32 { x[r * 24..][..24].iter().zip(w).map(|(x, w)| x * w).sum() };
            let branch: f32 = (0..4).map(|j| 2.0 * dot(&a[j * 24..]) * b[o * 4 + j]).sum();
            assert_eq!(*y, dot(&base[o * 24..]) + branch + bias.map_or(0.0, |bias| bias[o]));
        }
        let narrow = |values: &[f32]| -> Vec<bf16> {
            values.iter().map(|value| bf16::from_f32(*value)).collect()
        };
        let (given, expected) = ([&x, &a, &b, &base].map(|values| narrow(values)), narrow(&y));
        let [x, a, b, base] = given.each_ref().map(Vec::as_slice);
        let bias = bias.map(narrow);
        let rounded = LoraOperands { x, a, b, base, bias: bias.as_deref() };
        let mut half = vec![bf16::NAN; 12 * 16];
        Cpu::new().lora_forward(&lora, rounded, &mut half).unwrap();
        assert_eq!(half, expected);
        let short = LoraOperands { base: &operands.base[1..], ..operands };
        let refused = Cpu::new().lora_forward(&lora, short, &mut y);
        assert!(matches!(refused, Err(Error::Argument { argument, .. }) if argument == "base"));
    }
}

#[test]
fn norms_of_what_cancels_are_not_negative() {
    // Equal rows of `x`, and `dY` that adds up to nothing, as behind a softmax: the Gram form
    // sums large numbers of both signs.
    let (samples, rows, features) = (64, 16, 96);
    let layer = Linear::new(Rows::uniform(samples, rows).unwrap(), features, features).unwrap();
    let noise = |at: usize| ((at as f32 * 0.7).sin() * 43758.547).fract();
    let mut x = vec![0.0; samples * rows * features];
    let mut dy = x.clone();
    for n in 0..samples {
        for r in 0..rows {
            for f in 0..features {
                let at = (n * rows + r) * features + f;
                x[at] = 30.0 + noise(n * features + f);
                dy[at] = 10.0 * noise(7 * at + 1);
            }
        }
        for f in 0..features {
            let at = |r: usize| (n * rows + r) * features + f;
            dy[at(rows - 1)] = -(0..rows - 1).map(|r| dy[at(r)]).sum::<f32>();
        }
    }
    let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
    let mut norms = vec![f32::NAN; samples];
    let out = LayerOutputs { sq_norm: Some(&mut norms), ..LayerOutputs::<f32>::default() };
    Cpu::new().linear(&layer, &Options::default(), inputs, None, out).unwrap();
    assert!(norms.iter().all(|&norm| norm >= 0.0), "{norms:?}");
    assert!(norms.contains(&0.0), "none came out below nothing: {norms:?}");
}
