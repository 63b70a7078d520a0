//! AdamW: the textbook's, and what it leaves alone.

use candle_core::backprop::GradStore;
use candle_core::{Module, Var};
use gradroute::candle::{AdamW, AdamWConfig, Batch, Init, RoutedLinear};

use crate::net::{Net, POLICY};
use crate::support::*;

/// AdamW in f64, one parameter.
fn textbook(start: &[f32], gradients: &[Vec<f32>], rate: f64, config: AdamWConfig) -> Vec<f32> {
    let (b1, b2) = (config.beta1, config.beta2);
    let one = |k: usize| {
        let (mut p, mut m, mut v) = (f64::from(start[k]), 0.0, 0.0);
        for (t, g) in gradients.iter().enumerate() {
            let (g, t) = (f64::from(g[k]), t as i32 + 1);
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            p -= rate * config.weight_decay * p;
            let (m, v) = (m / (1.0 - b1.powi(t)), v / (1.0 - b2.powi(t)));
            p -= rate * m / (v.sqrt() + config.eps);
        }
        p as f32
    };
    (0..start.len()).map(one).collect()
}

#[test]
fn adamw_is_the_textbooks_where_everything_is_touched() {
    let (recorder, parameters, scope) = fresh();
    let layer = RoutedLinear::new(5, 3, true, &scope.at("l")).unwrap();
    let free = parameters.create("free", 3, Init::Ones).unwrap();
    let config = AdamWConfig { weight_decay: 0.1, ..Default::default() };
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut optimizer = AdamW::new(&parameters, &recorder, config).unwrap();
    let start: Vec<Vec<f32>> = parameters.all().iter().map(|(_, var)| flat(var)).collect();
    let mut gradients = vec![Vec::new(); 3];
    for step in 0..5 {
        recorder.begin_step(batch(4)).unwrap();
        let y = layer.forward(&random(&[4, 5], step)).unwrap().broadcast_mul(&free).unwrap();
        let grads = loss(&y).unwrap().backward().unwrap();
        recorder.finish_step().unwrap();
        for ((_, var), all) in parameters.all().iter().zip(&mut gradients) {
            all.push(flat(grads.get(var).unwrap()));
        }
        optimizer.step(&grads, 0.01).unwrap();
        // A new optimizer goes on where the saved one stopped.
        optimizer.save(file.path()).unwrap();
        optimizer = AdamW::new(&parameters, &recorder, config).unwrap();
        optimizer.load(file.path()).unwrap();
    }
    for (((name, var), start), gradients) in parameters.all().iter().zip(&start).zip(&gradients) {
        let expected = textbook(start, gradients, 0.01, config);
        assert_close(name, &flat(var), &expected, 1e-6);
        assert_ne!(&flat(var), start);
    }
}

#[test]
fn untouched_regions_stay_bit_for_bit() {
    let (recorder, parameters, net, policy) = Net::governed();
    let config = AdamWConfig { weight_decay: 0.1, ..Default::default() };
    let mut optimizer = AdamW::new(&parameters, &recorder, config).unwrap();
    let x = random(&[2, 3, 4, 4], 1);
    let mut step = |categories: [u32; 2]| {
        let before: Vec<Vec<f32>> = parameters.all().iter().map(|(_, var)| flat(var)).collect();
        let switches = policy.switches(1, 0, &[0, 1], &categories).unwrap();
        let categories = categories.to_vec();
        let batch = Batch { categories, switches: Some(switches), ..batch(2) };
        recorder.begin_step(batch).unwrap();
        let grads = net.loss(&recorder, &x).unwrap().backward().unwrap();
        recorder.finish_step().unwrap();
        optimizer.step(&grads, 0.01).unwrap();
        let moved = |((_, var), before): (&(String, Var), &Vec<f32>)| -> Vec<bool> {
            flat(var).iter().zip(before).map(|(now, then)| now != then).collect()
        };
        parameters.all().iter().zip(&before).map(moved).collect::<Vec<_>>()
    };
    // Whether conv1's bias, norm2's scale and conv2's weight moved, public part and region.
    let parts = |moved: &[Vec<bool>]| {
        let all = |flags: &[bool]| {
            assert!(flags.iter().all(|&flag| flag == flags[0]), "all or none");
            flags[0]
        };
        let conv2 = moved[4].chunks_exact(54);
        let public: Vec<bool> = conv2.clone().flat_map(|row| row[..36].to_vec()).collect();
        let region: Vec<bool> = conv2.flat_map(|row| row[36..].to_vec()).collect();
        [
            [all(&moved[1][..4]), all(&moved[1][4..])],
            [all(&moved[2][..4]), all(&moved[2][4..])],
            [all(&public), all(&region)],
        ]
    };
    // Moments are built up everywhere first, so that momentum would move what is skipped.
    assert_eq!(parts(&step([0, 1])), [[true, true]; 3]);
    assert_eq!(parts(&step([0, 0])), [[true, false]; 3]);
    assert_eq!(parts(&step([1, 1])), [[false, true]; 3]);
}

#[test]
fn accumulated_steps_touch_what_either_touched() {
    let (recorder, parameters, net, policy) = Net::governed();
    let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default()).unwrap();
    let before = flat(&parameters.get("conv1.bias").unwrap());
    let mut sum = GradStore::default();
    for category in [0, 1] {
        let switches = policy.switches(1, 0, &[0, 1], &[category; 2]).unwrap();
        let categories = vec![category; 2];
        recorder.begin_step(Batch { categories, switches: Some(switches), ..batch(2) }).unwrap();
        let loss = net.loss(&recorder, &random(&[2, 3, 4, 4], category)).unwrap();
        sum.extend(loss.backward().unwrap()).unwrap();
        recorder.finish_step().unwrap();
    }
    optimizer.step(&sum, 0.01).unwrap();
    let after = flat(&parameters.get("conv1.bias").unwrap());
    assert!(before.iter().zip(&after).all(|(a, b)| a != b));
}

#[test]
fn another_policys_regions_are_refused() {
    let (recorder, parameters, net, policy) = Net::governed();
    let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default()).unwrap();
    let x = random(&[2, 3, 4, 4], 1);
    let mut step = || {
        let switches = policy.switches(1, 0, &[0, 1], &[0, 1]).unwrap();
        let batch = Batch { categories: vec![0, 1], switches: Some(switches), ..batch(2) };
        recorder.begin_step(batch).unwrap();
        let grads = net.loss(&recorder, &x).unwrap().backward().unwrap();
        recorder.finish_step().unwrap();
        optimizer.step(&grads, 0.01)
    };
    step().unwrap();
    // As many regions, elsewhere.
    recorder.govern(&Net::policy(&recorder, &POLICY.replace("-2..", "-4.."))).unwrap();
    let before: Vec<Vec<f32>> = parameters.all().iter().map(|(_, var)| flat(var)).collect();
    assert!(typed(&step().unwrap_err()).contains("regions changed"));
    let after: Vec<Vec<f32>> = parameters.all().iter().map(|(_, var)| flat(var)).collect();
    assert_eq!(before, after);
    recorder.govern(&policy).unwrap();
    step().unwrap();
}
