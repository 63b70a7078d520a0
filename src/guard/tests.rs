use super::*;
use crate::routing::{Categories, LayerSpec, ModelLayout, Policy};

/// A record of one block: ids with norms, gates 1 where none are given.
fn record(step: u64, samples: &[u64], norms: &[f32], gates: Option<Vec<f32>>) -> StepRecord {
    let count = samples.len();
    StepRecord {
        step,
        step_size: 0.1,
        optimizer_scale: 1.0,
        blocks: 1,
        samples: samples.to_vec(),
        noise_levels: vec![f32::NAN; count],
        gates: gates.unwrap_or_else(|| vec![1.0; count]),
        route: vec![1.0; count],
        flow: vec![1.0; count],
        sq_norm: norms.iter().map(|norm| norm * norm).collect(),
        sketch: Vec::new(),
    }
}

/// Samples `0..singles` unlike each other, then `copies` of one more picture.
fn enlisted(singles: usize, copies: usize, config: GuardConfig) -> Guard {
    let mut guard = Guard::new(1, config).unwrap();
    let length = singles + 1;
    for id in 0..singles + copies {
        let mut fingerprint = vec![0.0; length];
        fingerprint[id.min(singles)] = 1.0;
        // Copies are alike, not equal.
        fingerprint[0] += if id > singles { 0.01 * (id - singles) as f32 } else { 0.0 };
        guard.enlist(id as u64, Some((id % 3) as u32), Some(&fingerprint)).unwrap();
    }
    guard
}

/// Epochs over all samples, `batch` at a time, `parts` records to a step.
fn run(guard: &mut Guard, epochs: u64, batch: usize, parts: usize) {
    let all: Vec<u64> = guard.ids.clone();
    let mut step = 0;
    for epoch in 0..epochs {
        let mut order = all.clone();
        order.rotate_left(7 * epoch as usize % all.len());
        for step_samples in order.chunks(batch) {
            for samples in step_samples.chunks(batch.div_ceil(parts)) {
                let gates = guard.gates(samples);
                let norms = vec![2.0; samples.len()];
                guard.observe(&record(step, samples, &norms, Some(gates))).unwrap();
            }
            step += 1;
        }
    }
}

/// Ten copies of a picture train an eighth of the block, forty other pictures the rest.
#[test]
fn a_small_region_is_no_way_around_the_budget() {
    let text = r#"
        block = [{ name = "all", layers = "*" }]
        [[region]]
        name = "r"
        owner = "artist"
        parts = [{ layers = "fc", outputs = "0" }]
        [[profile]]
        category = "/"
        [[profile]]
        category = "artist"
        route = 0
    "#;
    let layout = ModelLayout::new(vec![LayerSpec::linear("fc", 8, 8, false)]).unwrap();
    let categories = Categories::new(["public", "artist"]).unwrap();
    let policy = Policy::from_toml(text).unwrap().compile(&layout, &categories).unwrap();
    assert_eq!([policy.block_route(1, 0), policy.block_reach(1, 0)], [0.125, 1.0]);
    let lowest = |govern: bool| {
        let mut guard = Guard::new(1, GuardConfig::default()).unwrap();
        if govern {
            guard.govern(&policy).unwrap();
        }
        for id in 0..50 {
            let mut fingerprint = [0.0; 41];
            fingerprint[id.min(40)] = 1.0;
            guard.enlist(id as u64, Some(u32::from(id >= 40)), Some(&fingerprint)).unwrap();
        }
        let mut lowest = [1.0f32; 2];
        for step in 0..12 {
            let samples: Vec<u64> = (0..50).collect();
            let gates = guard.gates(&samples);
            let category = |id: &u64| usize::from(*id >= 40);
            let mut record = record(step, &samples, &[2.0; 50], Some(gates.clone()));
            record.route =
                samples.iter().map(|id| policy.block_route(category(id) as u32, 0)).collect();
            guard.observe(&record).unwrap();
            for (id, gate) in samples.iter().zip(gates) {
                lowest[category(id)] = lowest[category(id)].min(gate);
            }
        }
        lowest
    };
    assert_eq!(lowest(false), [1.0, 1.0]);
    let [public, artist] = lowest(true);
    assert!(public == 1.0 && artist < 0.1, "{public}, {artist}");
    let mut other = Guard::new(2, GuardConfig::default()).unwrap();
    assert!(other.govern(&policy).unwrap_err().to_string().contains("policy"));
}

#[test]
fn copies_share_one_budget() {
    let mut guard = enlisted(40, 10, GuardConfig::default());
    run(&mut guard, 12, 8, 1);
    let scores = guard.scores();
    let (single, copy) = (&scores[3], &scores[45]);
    // Ten copies together have what the hard limit allows, not ten times a single's.
    assert!(copy.cluster_exposure < 3.0, "{copy:?}");
    assert!(copy.cluster_exposure > 1.5, "{copy:?}");
    assert!(guard.gates(&[3])[0] == 1.0 && guard.gates(&[45])[0] < 1.0);
    assert!(copy.total > 2.0 && single.total < 0.1);
    assert_eq!((copy.cluster, single.cluster), (40, 3));
    let report = guard.report();
    assert_eq!(report.gated.len(), 1);
    assert_eq!(report.gated[0].members, (40..50).collect::<Vec<u64>>());
    assert!(report.gated[0].withheld > 0.7 && report.gated[0].level == Level::Cluster);
    assert!(report.to_string().contains("10 × sample 40"), "{report}");
    // Every event is below 1, of a copy, and in the order of the steps.
    let events = guard.take_events();
    assert_eq!(events.len() as u64, report.gated[0].times);
    assert!(events.iter().all(|event| event.sample >= 40 && event.gate < 1.0));
    assert!(events.is_sorted_by_key(|event| event.step));
    assert!(guard.take_events().is_empty());
}

#[test]
fn without_a_guard_copies_have_all() {
    let mut guard = enlisted(40, 10, GuardConfig { cluster: None, ..GuardConfig::default() });
    run(&mut guard, 12, 8, 1);
    assert!(guard.scores()[45].cluster_exposure > 8.0);
    assert!(guard.report().gated.is_empty());
}

#[test]
fn accumulation_of_gradients_changes_little() {
    let mut whole = enlisted(40, 10, GuardConfig::default());
    let mut parts = whole.clone();
    run(&mut whole, 12, 8, 1);
    run(&mut parts, 12, 8, 4);
    let [a, b] = [&mut whole, &mut parts].map(|guard| guard.scores()[45].cluster_exposure);
    assert!((a - b).abs() < 0.2, "{a} {b}");
}

#[test]
fn a_saved_guard_goes_on_with_the_same_bits() {
    let mut guard = enlisted(40, 10, GuardConfig::default());
    run(&mut guard, 3, 8, 1);
    let text = serde_json::to_string(&guard).unwrap();
    let mut again: Guard = serde_json::from_str(&text).unwrap();
    run(&mut guard, 3, 8, 1);
    run(&mut again, 3, 8, 1);
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
    for (a, b) in guard.scores().iter().zip(&again.scores()) {
        assert!(close(a.total, b.total) && close(a.cluster_exposure, b.cluster_exposure));
        assert_eq!(a.cluster, b.cluster);
    }
    assert_eq!(guard.report().gated[0].times, again.report().gated[0].times);
}

#[test]
fn the_gate_falls_smoothly() {
    let budget = Budget { soft: 1.5, hard: 4.0 };
    let gates: Vec<f32> = (0..=1000).map(|k| budget.gate(f64::from(k) * 0.005)).collect();
    assert_eq!((gates[0], gates[300], gates[800], gates[1000]), (1.0, 1.0, 0.0, 0.0));
    for pair in gates.windows(2) {
        let fall = pair[0] - pair[1];
        assert!((0.0..0.0031).contains(&fall), "{pair:?}");
    }
}

#[test]
fn samples_and_categories_have_budgets_too() {
    let only = |sample, category| GuardConfig {
        cluster: None,
        sample,
        category,
        ..GuardConfig::default()
    };
    let budget = Some(Budget { soft: 1.2, hard: 3.0 });
    let mut guard = enlisted(9, 0, only(budget, None));
    for step in 0..4 {
        // Sample 2 comes twice as often as the others.
        let samples = [0, 1, 2, 2, 3, 4, 5, 6, 7, 8];
        guard.observe(&record(step, &samples, &[1.0; 10], None)).unwrap();
    }
    let gates = guard.gates(&[0, 2]);
    assert!(gates[0] == 1.0 && gates[1] < 0.9, "{gates:?}");

    let mut guard = enlisted(9, 0, only(None, budget));
    let norms: Vec<f32> = (0..9).map(|id| if id % 3 == 1 { 6.0 } else { 1.0 }).collect();
    guard.observe(&record(0, &[0, 1, 2, 3, 4, 5, 6, 7, 8], &norms, None)).unwrap();
    let gates = guard.gates(&[0, 1, 4]);
    assert!(gates[0] == 1.0 && gates[1] < 0.6 && gates[1] == gates[2], "{gates:?}");
    guard.observe(&record(1, &[0, 1], &[1.0, 6.0], Some(vec![1.0, gates[1]]))).unwrap();
    assert_eq!(guard.take_events()[0].level, Level::Category);
}

#[test]
fn norms_are_compared_at_their_level_and_time() {
    let config = GuardConfig { noise_edges: vec![0.5], ..GuardConfig::default() };
    let mut guard = Guard::new(1, config).unwrap();
    // Norms fall over time and differ by level; sample 1 has 2/3 of the others' all along.
    for step in 0..200 {
        let samples: Vec<u64> = (0..10).collect();
        let levels: Vec<f32> = (0..10).map(|n| ((n + step) % 2) as f32).collect();
        let norms: Vec<f32> = (0..10)
            .map(|n| {
                let jitter = 1.0 + 0.1 * (((7 * n + 3 * step) % 11) as f32 / 11.0 - 0.5);
                let level = 1.0 + 9.0 * levels[n as usize];
                let low = if n == 1 { 2.0 / 3.0 } else { 1.0 };
                jitter * level * low * 0.995f32.powi(step as i32)
            })
            .collect();
        let mut it = record(step, &samples, &norms, None);
        it.noise_levels = levels;
        guard.observe(&it).unwrap();
    }
    let scores = guard.scores();
    assert!(scores[1].deviation < -1.5, "{:?}", scores[1]);
    assert!(scores.iter().all(|it| it.sample == 1 || it.deviation.abs() < 0.7), "{scores:?}");
    assert!(scores[1].total > scores[2].total);
    assert_eq!(scores[1].by_level.iter().map(|(events, _)| events).sum::<u32>(), 200);
}

#[test]
fn later_samples_join_their_cluster() {
    let mut guard = Guard::new(1, GuardConfig::default()).unwrap();
    guard.enlist(1, None, Some(&[1.0, 0.0])).unwrap();
    guard.enlist(2, None, Some(&[0.0, 1.0])).unwrap();
    guard.observe(&record(0, &[1, 2], &[1.0, 1.0], None)).unwrap();
    guard.enlist(3, None, Some(&[0.0, 2.0])).unwrap();
    guard.observe(&record(1, &[3], &[1.0], None)).unwrap();
    let scores = guard.scores();
    assert_eq!((scores[2].cluster, scores[1].nearest), (2, Some(1.0)));
    assert!((scores[1].cluster_exposure - 4.0 / 3.0).abs() < 1e-9, "{:?}", scores[1]);
    assert!(scores[1].density > 0.99 && scores[0].density < 1e-6);
}

#[test]
fn what_is_not_finite_does_no_harm() {
    let mut guard = enlisted(4, 2, GuardConfig::default());
    let norms = [1.0, f32::NAN, f32::INFINITY, 0.0, 1.0, 1.0];
    guard.observe(&record(0, &[0, 1, 2, 3, 4, 5], &norms, None)).unwrap();
    let scores = guard.scores();
    assert!(scores.iter().all(|it| it.total.is_finite() && it.exposure.is_finite()));
    assert_eq!(scores[1].exposure, 0.0);
}

#[test]
fn mistakes_are_named() {
    let text = |config: GuardConfig| Guard::new(1, config).unwrap_err().to_string();
    let config = GuardConfig::default;
    assert!(text(GuardConfig { memory: 1.0, ..config() }).contains("config.memory"));
    assert!(text(GuardConfig { similarity: 1.5, ..config() }).contains("config.similarity"));
    assert!(text(GuardConfig { width: 0.0, ..config() }).contains("config.width"));
    let edges = vec![0.5, 0.5];
    assert!(text(GuardConfig { noise_edges: edges, ..config() }).contains("config.noise_edges"));
    let sample = Some(Budget { soft: 2.0, hard: 2.0 });
    assert!(text(GuardConfig { sample, ..config() }).contains("config.sample"));
    assert!(Guard::new(0, config()).unwrap_err().to_string().contains("blocks"));
    let mut guard = enlisted(2, 0, config());
    let mistake = |it: Result<()>| it.unwrap_err().to_string();
    assert!(mistake(guard.enlist(0, None, None)).contains("not known yet"));
    assert!(mistake(guard.enlist(9, None, Some(&[1.0]))).contains("fingerprint"));
    assert!(mistake(guard.enlist(9, None, Some(&[0.0; 3]))).contains("not all 0"));
    let before = guard.clone();
    assert!(mistake(guard.observe(&StepRecord::default())).contains("blocks"));
    assert_eq!(guard, before);
}

/// Closes gates as soon as a sample has more than its share.
fn strict() -> GuardConfig {
    let sample = Some(Budget { soft: 1.0, hard: 1.5 });
    GuardConfig { sample, cluster: None, ..GuardConfig::default() }
}

#[test]
fn a_sample_that_is_there_twice_is_gated_twice() {
    let mut guard = Guard::new(1, strict()).unwrap();
    guard.observe(&record(0, &[1, 2, 3], &[9.0, 1.0, 1.0], None)).unwrap();
    let samples = [1, 1, 2];
    let gates = guard.gates(&samples);
    assert_eq!(gates, [0.0, 0.0, 1.0]);
    guard.observe(&record(1, &samples, &[9.0; 3], Some(gates))).unwrap();
    assert_eq!(guard.take_events().len(), 2);
    let report = guard.report();
    assert_eq!(report.gated[0].times, 2);
    // It had 9, and 18 more were kept from it.
    assert!((report.gated[0].withheld - 2.0 / 3.0).abs() < 1e-9, "{report}");
    // What was heeded is not counted again.
    guard.observe(&record(2, &[1], &[9.0], Some(vec![0.0]))).unwrap();
    assert!(guard.take_events().is_empty());
}

#[test]
fn the_last_closing_is_the_latest() {
    let mut guard = Guard::new(1, strict()).unwrap();
    for id in [1, 2] {
        guard.enlist(id, None, Some(&[1.0, 0.0])).unwrap();
    }
    guard.enlist(3, None, Some(&[0.0, 1.0])).unwrap();
    guard.observe(&record(0, &[1, 2, 3], &[4.0, 4.0, 1.0], None)).unwrap();
    // The sample enlisted later is closed first, the earlier one with a larger share later.
    for (step, sample, norm) in [(1, 2, 1.0), (2, 1, 1.0)] {
        let gates = guard.gates(&[sample]);
        assert!(gates[0] < 1.0);
        guard.observe(&record(step, &[sample, 3], &[norm; 2], Some(vec![gates[0], 1.0]))).unwrap();
    }
    let events = guard.take_events();
    let report = guard.report();
    assert_eq!(report.gated[0].members, [1, 2]);
    assert_eq!(report.gated[0].ratio, events[1].ratio);
    assert!(events[0].ratio != events[1].ratio);
}
