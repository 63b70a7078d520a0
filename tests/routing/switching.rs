//! Switches: who sees a region, drawn how, and that nothing but the region depends on it.

use gradroute::problem::NormKind;
use gradroute::routing::{CompiledPolicy, LayerSpec, ModelLayout, Policy, Switches};

use super::{EVERYWHERE, UP, compiled, typefaces};

#[test]
fn the_strict_switch_is_for_owners_only() {
    let compiled = compiled(EVERYWHERE);
    let samples: Vec<u64> = (0..400).collect();
    let categories: Vec<u32> = samples.iter().map(|&id| id as u32 % 4).collect();
    for step in 0..20 {
        let switches = compiled.switches(1, step, &samples, &categories).unwrap();
        for (n, category) in categories.iter().enumerate() {
            assert_eq!(switches.value(0, n), f32::from(category % 2 == 1));
        }
    }
    assert_eq!(compiled.evaluation_switches(&[0, 1]).unwrap().region(0), [0.0, 1.0]);
}

#[test]
fn public_samples_see_a_region_off_with_the_probability() {
    for p in [0.0f32, 0.1, 0.5, 0.9, 1.0] {
        let policy = UP.replace("public_off = 0.5", &format!("public_off = {p:?}"));
        let compiled = compiled(&policy);
        let samples: Vec<u64> = (0..20_000).map(|n| n << 20).collect();
        let mut categories = vec![0; samples.len()];
        let switches = compiled.switches(3, 9, &samples, &categories).unwrap();
        let off = switches.region(0).iter().filter(|&&value| value == 0.0).count() as f32;
        let n = samples.len() as f32;
        assert!((off - p * n).abs() <= 4.0 * (p * (1.0 - p) * n).sqrt(), "p {p}: {off} of {n}");
        // Owners always see it, and a region without a rule is on.
        categories.fill(3);
        let owners = compiled.switches(3, 9, &samples, &categories).unwrap();
        assert!(owners.region(0).iter().chain(switches.region(1)).all(|&value| value == 1.0));
    }
}

#[test]
fn a_draw_depends_on_the_sample_and_not_on_the_batch() {
    let compiled = compiled(UP);
    let samples: Vec<u64> = (0..4096).map(|n| n * 0x1_0000_0001).collect();
    let draw = |seed, step, samples: &[u64]| -> Vec<f32> {
        let switches = compiled.switches(seed, step, samples, &vec![2; samples.len()]).unwrap();
        switches.region(0).to_vec()
    };
    let all = draw(5, 77, &samples);
    let mut reversed = samples.clone();
    reversed.reverse();
    let mut other_order = draw(5, 77, &reversed);
    other_order.reverse();
    assert_eq!(all, other_order);
    assert_eq!(draw(5, 77, &samples[100..101]), all[100..101]);
    // Another seed, step (in either half) or sample (in either half) is another draw.
    let shifted: Vec<u64> = samples.iter().map(|id| id ^ 1 << 40).collect();
    let others = [
        draw(6, 77, &samples),
        draw(5, 78, &samples),
        draw(5, 77 + (1 << 32), &samples),
        draw(5, 77, &shifted),
    ];
    for (k, other) in others.iter().enumerate() {
        let agree = all.iter().zip(other).filter(|(a, b)| a == b).count() as f32;
        // Half, within four standard deviations of 4096 coins.
        assert!((agree - 2048.0).abs() < 4.0 * 32.0, "{k}: {agree} of 4096 agree");
    }
}

#[test]
fn regions_are_drawn_apart() {
    let rows = "switch = { public_off = 0.5 }\nparts = [{ layers = \"up.*.{conv1,told}\"";
    let split = format!(
        "{rows}, outputs = \"-8..\" }}]\n\n[[region]]\nname = \"other\"\nowner = \"style/script\"\n{rows}, outputs = \"-16..-8\""
    );
    let text = UP.replacen(&format!("{rows}, outputs = \"-16..\""), &split, 1);
    let compiled = compiled(&text);
    let samples: Vec<u64> = (0..4096).collect();
    let switches = compiled.switches(5, 1, &samples, &[0; 4096]).unwrap();
    let pairs = switches.region(0).iter().zip(switches.region(1));
    let agree = pairs.filter(|(a, b)| a == b).count() as f32;
    assert!((agree - 2048.0).abs() < 4.0 * 32.0, "{agree} of 4096 agree");
}

#[test]
fn the_dial_turns_what_is_seen() {
    let strict = compiled(EVERYWHERE).evaluation_switches(&[0, 1, 2]).unwrap();
    assert_eq!(strict.clone().with_dial(0, 1.0), strict);
    assert_eq!(strict.with_dial(0, 0.25).region(0), [0.0, 0.25, 0.0]);
    let folded = compiled(UP).evaluation_switches(&[0, 1]).unwrap().with_dial(0, 0.5);
    assert_eq!((folded.region(0), folded.region(1)), (&[0.5, 0.5][..], &[1.0, 1.0][..]));
    assert_eq!(Switches::uniform(2, 3, 0.5).region(1), [0.5; 3]);
}

#[test]
fn arguments_are_checked() {
    let compiled = compiled(EVERYWHERE);
    let text = |samples: &[u64], categories: &[u32]| {
        compiled.switches(0, 0, samples, categories).unwrap_err().to_string()
    };
    assert!(text(&[1, 2], &[0]).contains("`categories`: expected 2"));
    assert!(text(&[1, 2], &[0, 4]).contains("`categories[1]`: expected an id below 4, got 4"));
    assert!(compiled.switches(0, 0, &[], &[]).unwrap().region(0).is_empty());
}

/// Two linear layers added up, a GroupNorm, an activation, the switch, a linear layer.
struct Net {
    layout: ModelLayout,
    weights: Vec<Vec<f64>>,
    biases: Vec<Vec<f64>>,
}

const INPUTS: usize = 3;
const HIDDEN: usize = 6;
const GROUP: usize = 2;

impl Net {
    fn new() -> Self {
        let groups = NormKind::Group { groups: HIDDEN / GROUP };
        let layout = ModelLayout::new(vec![
            LayerSpec::linear("a", INPUTS, HIDDEN, true),
            LayerSpec::linear("b", INPUTS, HIDDEN, true),
            LayerSpec::norm("norm", groups, HIDDEN, true).reading("a").reading("b"),
            LayerSpec::linear("out", HIDDEN, 2, true).reading("norm"),
        ])
        .unwrap();
        let number = |k: usize| ((k * 37 + 11) % 23) as f64 / 7.0 - 1.5;
        let layers = layout.layers();
        let weights =
            layers.iter().map(|l| (0..l.outputs * l.features).map(number).collect()).collect();
        let biases = layers.iter().map(|l| (1..=l.outputs).map(number).collect()).collect();
        Self { layout, weights, biases }
    }

    fn linear(&self, at: usize, x: &[f64]) -> Vec<f64> {
        let rows = self.weights[at].chunks(x.len());
        let products = rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
        products.zip(&self.biases[at]).map(|(y, b)| y + b).collect()
    }

    fn forward(&self, compiled: &CompiledPolicy, switches: &Switches) -> Vec<f64> {
        let x = [0.3, -1.1, 0.7];
        let mut h: Vec<f64> =
            self.linear(0, &x).iter().zip(self.linear(1, &x)).map(|(a, b)| a + b).collect();
        for group in h.chunks_mut(GROUP) {
            let mean = group.iter().sum::<f64>() / GROUP as f64;
            let variance = group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / GROUP as f64;
            group.iter_mut().for_each(|v| *v = (*v - mean) / (variance + 1e-5).sqrt());
        }
        for (c, v) in h.iter_mut().enumerate() {
            *v = (*v * self.weights[2][c] + self.biases[2][c]).tanh();
        }
        for (features, region) in compiled.reads_of(3) {
            let value = f64::from(switches.value(*region, 0));
            h[features.clone()].iter_mut().for_each(|v| *v *= value);
        }
        self.linear(3, &h)
    }
}

/// What a policy is for: with the region off, the output depends on every parameter outside of
/// the region and on none inside.
#[test]
fn region_off_means_independent_of_exactly_the_region() {
    let policy = Policy::from_toml(
        r#"
        block = [{ name = "all", layers = "*" }]
        profile = [{ category = "/" }]
        [[region]]
        name = "script"
        owner = "style/script"
        switch = "strict"
        parts = [{ layers = "[ab]", outputs = "-2.." }]
        "#,
    )
    .unwrap();
    let mut net = Net::new();
    let compiled = policy.compile(&net.layout, &typefaces()).unwrap();
    let [public, owner] =
        [0, 1].map(|category| compiled.switches(0, 0, &[9], &[category]).unwrap());
    let plain = [net.forward(&compiled, &public), net.forward(&compiled, &owner)];
    let mut inside = 0;
    for at in 0..net.layout.layers().len() {
        let (features, regions) =
            (net.layout.layers()[at].features, compiled.layers()[at].regions());
        for k in 0..net.weights[at].len() + net.biases[at].len() {
            let weights = net.weights[at].len();
            let region = match k.checked_sub(weights) {
                None => regions.region_at(k / features, k % features),
                Some(o) => regions.bias_region_at(o),
            };
            let nudge = |net: &mut Net, by: f64| match k.checked_sub(weights) {
                None => net.weights[at][k] += by,
                Some(o) => net.biases[at][o] += by,
            };
            nudge(&mut net, 0.5);
            let moved = [net.forward(&compiled, &public), net.forward(&compiled, &owner)];
            nudge(&mut net, -0.5);
            let name = &net.layout.layers()[at].path;
            assert_eq!(moved[0] == plain[0], region == 1, "public, {name} [{k}]");
            assert_ne!(moved[1], plain[1], "owner, {name} [{k}]");
            inside += region;
        }
    }
    // a and b: 2 rows and biases each; norm: 2 γ and β; out: 2 columns.
    assert_eq!(inside, 2 * (2 * INPUTS + 2) + 4 + 4);
}
