//! Steps under a policy: routing, switches, records, probes.

use gradroute::candle::{AdamW, AdamWConfig, Batch, RoutedLinear};
use gradroute::routing::Switches;

use crate::net::{Net, materialised, matrix, weight_at};
use crate::support::*;

#[test]
fn a_governed_step_routes_switches_and_records() {
    let (recorder, parameters, net, policy) = Net::governed();
    let categories = [0, 1, 0, 1];
    let gates = [1.0, 0.5, 0.0, 1.0];
    let x = random(&[4, 3, 4, 4], 1);
    let switches = policy.switches(1, 0, &[0, 1, 2, 3], &categories).unwrap();
    recorder
        .begin_step(Batch {
            categories: categories.to_vec(),
            gates: Some(gates.to_vec()),
            switches: Some(switches),
            noise_levels: Some(vec![0.1, 0.2, 0.3, 0.4]),
            step: 9,
            ..batch(4)
        })
        .unwrap();
    let grads = net.loss(&recorder, &x).unwrap().backward().unwrap();
    let record = recorder.finish_step().unwrap();
    record.check(2, BUCKETS).unwrap();
    assert_eq!((record.step, record.noise_levels[3]), (9, 0.4));
    assert_eq!(record.gates, gates);
    assert_eq!(record.flow, [0.25, 1.0, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0]);
    assert_eq!(record.route[1..4], [1.0, policy.block_route(1, 0), -2.0]);

    let own = materialised(&net, &parameters, &x, &[0.0, 1.0, 0.0, 1.0], &[0.25, 1.0, 0.25, 1.0]);
    let names: Vec<String> = parameters.all().into_iter().map(|(name, _)| name).collect();
    let mut dw: Vec<(usize, Vec<f32>)> = Vec::new();
    for n in 0..4 {
        let mut expected = [vec![0.0; BUCKETS], vec![0.0; BUCKETS]];
        let mut sq_norm = [0.0; 2];
        for layer in 0..4 {
            let block = usize::from(layer == 3);
            let (outputs, columns, mut g) = matrix(layer, &own[n]);
            sq_norm[block] += g.iter().map(|g| g * g).sum::<f32>();
            for (at, g) in g.iter_mut().enumerate() {
                let (o, i) = (at / columns, at % columns);
                *g *= weight_at(&policy, layer, o, i, categories[n]) * gates[n];
            }
            let sketch = count_sketch(layer, columns, &g);
            expected[block].iter_mut().zip(sketch).for_each(|(sum, x)| *sum += x);
            if n == 0 {
                dw.push((outputs, vec![0.0; g.len()]));
            }
            // The loss is the mean over four samples.
            dw[layer].1.iter_mut().zip(g).for_each(|(sum, g)| *sum += g / 4.0);
        }
        assert_close("norms", &record.sq_norm[2 * n..][..2], &sq_norm, 1e-5);
        if gates[n] != 0.0 {
            let given = &record.sketch[2 * n * BUCKETS..][..2 * BUCKETS];
            assert_close("sketches", given, &expected.concat(), 1e-5);
        }
    }
    let given: Vec<Vec<f32>> =
        names.iter().map(|name| gradient(&grads, &parameters, name)).collect();
    for (layer, (_, expected)) in dw.iter().enumerate() {
        assert_close("dw", &matrix(layer, &given).2, expected, 1e-5);
    }
}

#[test]
fn a_probe_sketches_the_unrouted_gradient_and_trains_nothing() {
    let (recorder, parameters, net, policy) = Net::governed();
    let x = random(&[2, 3, 4, 4], 1);
    recorder.set_switches(Some(Switches::uniform(policy.regions().len(), 2, 0.5))).unwrap();
    recorder.begin_probe(2, 2.0).unwrap();
    let grads = net.loss(&recorder, &x).unwrap().backward().unwrap();
    let probe = recorder.finish_probe().unwrap();
    assert!(parameters.all().iter().all(|(_, var)| grads.get(var).is_none()));
    let own = materialised(&net, &parameters, &x, &[0.5; 2], &[1.0; 2]);
    for (n, own) in own.iter().enumerate() {
        let mut body = vec![0.0; BUCKETS];
        for layer in 0..3 {
            let (_, columns, g) = matrix(layer, own);
            let sketch = count_sketch(layer, columns, &g);
            body.iter_mut().zip(sketch).for_each(|(sum, x)| *sum += x);
        }
        assert_close("probe", &probe.sketch[2 * n * BUCKETS..][..BUCKETS], &body, 1e-5);
    }
    let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default()).unwrap();
    assert!(typed(&optimizer.step(&grads, 1e-3).unwrap_err()).contains("no step was finished"));
}

#[test]
fn policies_and_switches_are_checked() {
    let (recorder, _, net, policy) = Net::governed();
    let x = random(&[2, 3, 4, 4], 1);
    let unknown = Batch { categories: vec![0, 2], ..batch(2) };
    assert!(recorder.begin_step(unknown).unwrap_err().to_string().contains("batch.categories[1]"));
    assert!(typed(&net.loss(&recorder, &x).unwrap_err()).contains("switch before conv2"));
    recorder.set_switches(Some(Switches::uniform(1, 3, 1.0))).unwrap();
    assert!(typed(&net.loss(&recorder, &x).unwrap_err()).contains("2 samples"));
    recorder.set_switches(Some(Switches::uniform(0, 2, 1.0))).unwrap();
    assert!(typed(&net.loss(&recorder, &x).unwrap_err()).contains("0 regions"));
    let scaleless = Batch { sample_scale: 0.0, ..batch(2) };
    let refused = recorder.begin_step(scaleless).unwrap_err().to_string();
    assert!(refused.contains("batch.sample_scale"), "{refused}");
    recorder.set_switches(None).unwrap();
    recorder.begin_step(batch(2)).unwrap();
    assert!(recorder.set_switches(None).unwrap_err().to_string().contains("open"));
    assert!(recorder.govern(&policy).unwrap_err().to_string().contains("open"));
    assert!(typed(&net.loss(&recorder, &x).unwrap_err()).contains("switch before conv2"));
    assert!(typed(&recorder.switch(&x, "nowhere").unwrap_err()).contains("nowhere"));
    let (other, _, scope) = fresh();
    RoutedLinear::new(4, 2, true, &scope.at("head")).unwrap();
    assert!(other.govern(&policy).unwrap_err().to_string().contains("layout"));
}

#[test]
fn a_switch_of_zero_selects() {
    let (recorder, _, _, policy) = Net::governed();
    let on = policy.evaluation_switches(&[0, 1]).unwrap();
    recorder.set_switches(Some(on)).unwrap();
    let x = (random(&[2, 6, 2, 2], 1) * f64::NAN).unwrap();
    let y = flat(&recorder.switch(&x, "conv2").unwrap());
    // Features 4 and 5 of the sample that does not own them.
    assert!(y[16..24].iter().all(|&y| y == 0.0));
    assert!(y[..16].iter().chain(&y[24..]).all(|y| y.is_nan()));
}
