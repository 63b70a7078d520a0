//! Folding the dial into a checkpoint equals running with the switch at that dial, on the example's
//! U-Net and on a small net; dry runs, refusals, and the projection for models without regions.

// The example's own modules: its U-Net is what is folded here.
#[allow(dead_code)]
#[path = "../examples/glyph_diffusion/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../examples/glyph_diffusion/diffusion.rs"]
mod diffusion;
#[allow(dead_code)]
#[path = "../examples/glyph_diffusion/governed.rs"]
mod governed;
#[path = "../examples/glyph_diffusion/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../examples/glyph_diffusion/options.rs"]
mod options;

use candle_core::{DType, Device, Module, Tensor};
use gradroute::candle::{Parameters, Recorder, RoutedLinear, Scope, silu};
use gradroute::provenance::{
    Accumulator, Attenuation, Covariance, Dial as CategoryDial, Projection, RowFade, StepRecord,
};
use gradroute::routing::{Categories, CompiledPolicy, LayerSpec, ModelLayout, Policy, Switches};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use data::{Conditions, Dataset, Plant};
use governed::{Dial, Governed};
use options::PolicyChoice;

/// Adds noise to all parameters: a fresh model's last layers are 0 and would hide everything.
fn stir(parameters: &Parameters) {
    let mut rng = StdRng::seed_from_u64(5);
    let stirred = parameters.snapshot().unwrap().into_iter().map(|(name, tensor)| {
        let count = tensor.elem_count();
        let noise: Vec<f32> = (0..count).map(|_| rng.random::<f32>() * 0.2 - 0.1).collect();
        let noise = Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).unwrap();
        (name, (tensor + noise).unwrap())
    });
    parameters.assign(&stirred.collect()).unwrap();
}

fn saved(parameters: &Parameters) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    parameters.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn load(parameters: &Parameters, checkpoint: &[u8]) {
    parameters
        .assign(&candle_core::safetensors::load_buffer(checkpoint, &Device::Cpu).unwrap())
        .unwrap();
}

fn dialled<'a>(policy: &'a CompiledPolicy, category: &str, at: f32) -> Attenuation<'a> {
    Attenuation::new(policy, &[CategoryDial::new(category, at).unwrap()]).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn folding_equals_the_switch_on_the_unet() {
    let data = Dataset::load(Plant::None).unwrap();
    for choice in [PolicyChoice::All, PolicyChoice::Strict] {
        let model = Governed::new(choice, &data, 3).unwrap();
        stir(model.parameters());
        let before = saved(model.parameters());
        let owned = data.samples.iter().filter(|sample| data.owned(sample)).step_by(50);
        let samples: Vec<_> = owned.take(4).chain(&data.samples[..2]).copied().collect();
        let levels = [0.1, 0.3, 0.5, 0.7, 0.4, 0.9];
        let categories: Vec<u32> = samples.iter().map(|sample| sample.typeface as u32).collect();
        let x = Tensor::from_vec(data.images(&samples), (6, 1, 16, 16), &Device::Cpu).unwrap();
        let predict = |dial: f32, share: Option<f32>| -> Vec<f32> {
            let mut told = Conditions::of(&samples);
            told.style_share = share.map(|share| vec![share; samples.len()]);
            let guess = model.predict(&x, &levels, &told, &categories, Dial::At(dial)).unwrap();
            guess.flatten_all().unwrap().to_vec1().unwrap()
        };
        let plain = predict(1.0, None);
        for dial in [0.0, 0.5, 0.3] {
            load(model.parameters(), &before);
            let switched = predict(dial, None);
            let faded = predict(dial, Some(dial));
            let attenuation = dialled(model.policy(), "style/script", dial);
            load(model.parameters(), &attenuation.apply(&before).unwrap());
            let folded = predict(1.0, None);
            assert!(largest_difference(&plain, &switched) > 1e-2);
            // Scaling by 0 or ½ is exact, so nothing at all differs.
            let bar = if dial == 0.3 { 2e-4 } else { 0.0 };
            let off = largest_difference(&switched, &folded);
            assert!(off <= bar, "{choice:?}, dial {dial}: {off}");

            // The style rows as well: the owned samples' embeddings fade towards no style.
            let rows = RowFade { layer: "condition.style".into(), neutral: data.typefaces.len() };
            let attenuation = attenuation.fade_rows(&rows).unwrap();
            load(model.parameters(), &attenuation.apply(&before).unwrap());
            let folded = predict(1.0, None);
            let owned = 4 * 256;
            let off = largest_difference(&faded[..owned], &folded[..owned]);
            assert!(off <= 2e-4, "{choice:?}, dial {dial}, rows: {off}");
        }
        load(model.parameters(), &before);
    }
}

#[test]
fn only_the_readers_of_the_region_change() {
    let data = Dataset::load(Plant::None).unwrap();
    let model = Governed::new(PolicyChoice::All, &data, 3).unwrap();
    let before = saved(model.parameters());
    let dials = [
        CategoryDial::new("style/script", 1.0).unwrap(),
        CategoryDial::new("style/script", 0.25).unwrap().in_block("up 16²"),
    ];
    let attenuation = Attenuation::new(model.policy(), &dials).unwrap();
    let after = attenuation.apply(&before).unwrap();
    let (old, new) =
        (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    let changed: Vec<_> = (old.tensors().into_iter())
        .filter(|(name, tensor)| new.tensor(name).unwrap().data() != tensor.data())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(changed, ["up.16.conv2.weight"]);
    let (_, header) = SafeTensors::read_metadata(&after).unwrap();
    let note = &header.metadata().as_ref().unwrap()["gradroute.attenuation"];
    assert!(note.contains("up 16²") && note.contains(&model.policy().hash().to_string()), "{note}");

    // Two halves are a quarter, and both are on record.
    let half = dialled(model.policy(), "style/script", 0.5);
    let twice = half.apply(&half.apply(&before).unwrap()).unwrap();
    let quarter = dialled(model.policy(), "style/script", 0.25).apply(&before).unwrap();
    let (a, b) =
        (SafeTensors::deserialize(&twice).unwrap(), SafeTensors::deserialize(&quarter).unwrap());
    assert!(a.tensors().iter().all(|(name, it)| b.tensor(name).unwrap().data() == it.data()));
    let (_, header) = SafeTensors::read_metadata(&twice).unwrap();
    let notes = &header.metadata().as_ref().unwrap()["gradroute.attenuation"];
    assert_eq!(notes.lines().count(), 2);
}

#[test]
fn faded_rows_are_selected_at_0_told_and_faded_once() {
    let data = Dataset::load(Plant::None).unwrap();
    let model = Governed::new(PolicyChoice::All, &data, 3).unwrap();
    let rows = RowFade { layer: "condition.style".into(), neutral: data.typefaces.len() };
    let faded = dialled(model.policy(), "style/script", 0.0).fade_rows(&rows).unwrap();
    // A row of the group that is no number any more.
    let style = model.parameters().get("condition.style.weight").unwrap();
    let (count, width) = style.dims2().unwrap();
    let own = data.typefaces.iter().position(|face| face.group == "script").unwrap();
    let mut values: Vec<f32> = style.flatten_all().unwrap().to_vec1().unwrap();
    values[own * width] = f32::NAN;
    style.set(&Tensor::from_vec(values.clone(), (count, width), &Device::Cpu).unwrap()).unwrap();
    let after = faded.apply(&saved(model.parameters())).unwrap();
    let tensors = SafeTensors::deserialize(&after).unwrap();
    let row = |at: usize| {
        tensors.tensor("condition.style.weight").unwrap().data()[at * 4 * width..][..4 * width]
            .to_vec()
    };
    assert_eq!(row(own), row(data.typefaces.len()));
    let (_, header) = SafeTensors::read_metadata(&after).unwrap();
    let note = &header.metadata().as_ref().unwrap()["gradroute.attenuation"];
    assert!(note.contains("rows of condition.style towards 49"), "{note}");
    assert!(faded.fade_rows(&rows).unwrap_err().to_string().contains("each embedding once"));
}

const NET: &str = r#"
    block = [{ name = "first", layers = "first" }, { name = "second", layers = "second" }]
    profile = [{ category = "style" }, { category = "style/script", route = 0.0 }]
    [[region]]
    name = "script"
    owner = "style/script"
    switch = "strict"
    parts = [{ layers = "first", outputs = "-4.." }]
"#;

fn net_policy(layout: &ModelLayout) -> CompiledPolicy {
    let names = ["style/serif", "style/script/kristi", "style/script/tangerine"];
    Policy::from_toml(NET).unwrap().compile(layout, &Categories::new(names).unwrap()).unwrap()
}

#[test]
fn folding_equals_the_switch_on_a_net_and_is_predicted() {
    let (parameters, recorder) = (Parameters::new(DType::F32, 1), Recorder::silent());
    let scope = Scope::new(&parameters, &recorder);
    let first = RoutedLinear::new(3, 12, true, &scope.at("first")).unwrap();
    let second = RoutedLinear::new(12, 2, true, &scope.at("second").reads("first")).unwrap();
    let policy = net_policy(&recorder.layout().unwrap());
    recorder.govern(&policy).unwrap();
    let x = Tensor::new(&[[1f32, -2., 3.], [0.5, 4., -1.]], &Device::Cpu).unwrap();
    let forward = |dial: f32| -> Vec<f32> {
        recorder.set_switches(Some(Switches::uniform(1, 2, dial))).unwrap();
        let hidden = silu(&first.forward(&x).unwrap()).unwrap();
        let hidden = recorder.switch(&hidden, "second").unwrap();
        second.forward(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let before = saved(&parameters);
    let attenuation = dialled(&policy, "style/script", 0.25);
    let switched = forward(0.25);
    load(&parameters, &attenuation.apply(&before).unwrap());
    assert_eq!(forward(1.0), switched);

    // Kristi pushed both blocks, serif the second alone, along the same direction.
    let mut influence = Accumulator::new(2, 2).unwrap();
    influence
        .add(&StepRecord {
            step_size: 1.0,
            optimizer_scale: 1.0,
            blocks: 2,
            samples: vec![0, 1],
            noise_levels: vec![0.5; 2],
            gates: vec![1.0; 2],
            route: vec![1.0; 4],
            flow: vec![1.0; 4],
            sq_norm: vec![1.0; 4],
            sketch: vec![0.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0],
            ..StepRecord::default()
        })
        .unwrap();
    let groups = influence.groups(3, |id| Some(id as usize)).unwrap();
    let predicted = attenuation.dry_run(&before, &groups).unwrap();
    assert_eq!(predicted.blocks.len(), 1);
    let block = &predicted.blocks[0];
    assert_eq!((block.name.as_str(), block.touched), ("second", 2 * 4));
    let weights = SafeTensors::deserialize(&before).unwrap();
    let weights: Vec<f64> = (weights.tensor("second.weight").unwrap().data().as_chunks().0.iter())
        .map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
        .collect();
    let square = |keep: &dyn Fn(usize) -> bool| -> f64 {
        weights.iter().enumerate().filter(|(at, _)| keep(at % 12)).map(|(_, w)| w * w).sum()
    };
    let expected = 0.75 * (square(&|i| i >= 8) / square(&|_| true)).sqrt();
    assert!((block.relative_change - expected).abs() < 1e-6);
    assert!((predicted.reached.unwrap() - 0.8).abs() < 1e-9);
    assert!((predicted.overlaps[0].cosine - 1.0).abs() < 1e-9);
    assert_eq!(predicted.overlaps[0].category, 0);
    let region = &predicted.regions[0];
    assert!(region.contained && region.public_off == 1.0 && region.name == "script");
}

#[test]
fn a_grouped_convolution_is_folded_by_its_groups() {
    let layout = ModelLayout::new(vec![
        LayerSpec::conv2d("a", 1, 4, [1, 1], 1, false),
        LayerSpec::conv2d("b", 4, 4, [1, 2], 2, false).reading("a"),
        LayerSpec::conv2d("c", 4, 1, [1, 1], 1, false).reading("b"),
    ])
    .unwrap();
    let text = r#"
        block = [{ name = "all", layers = "*" }]
        region = [{ name = "r", owner = "x", parts = [{ layers = "a", outputs = "2.." }] }]
        profile = [{ category = "x" }, { category = "y" }]
    "#;
    let categories = Categories::new(["x", "y"]).unwrap();
    let policy = Policy::from_toml(text).unwrap().compile(&layout, &categories).unwrap();
    let numbers = |count: usize| (1..=count).flat_map(|k| (k as f32).to_le_bytes()).collect();
    let (a, b, c): (Vec<u8>, Vec<u8>, Vec<u8>) = (numbers(4), numbers(16), numbers(4));
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).unwrap();
    let checkpoint = safetensors::serialize(
        [
            ("a.weight", view(vec![4, 1, 1, 1], &a)),
            ("b.weight", view(vec![4, 2, 1, 2], &b)),
            ("c.weight", view(vec![1, 4, 1, 1], &c)),
        ],
        None,
    )
    .unwrap();
    let after = dialled(&policy, "x", 0.5).apply(&checkpoint).unwrap();
    let after = SafeTensors::deserialize(&after).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let chunks = after.tensor(name).unwrap().data().as_chunks().0.to_vec();
        chunks.into_iter().map(f32::from_le_bytes).collect()
    };
    assert_eq!(values("a.weight"), [1., 2., 3., 4.]);
    assert_eq!(values("b.weight")[..8], [1., 2., 3., 4., 5., 6., 7., 8.]);
    assert_eq!(values("b.weight")[8..], [4.5, 5., 5.5, 6., 6.5, 7., 7.5, 8.]);
    assert_eq!(values("c.weight"), [1., 2., 1.5, 2.]);
}

#[test]
fn mistakes_are_named() {
    let layout = ModelLayout::new(vec![
        LayerSpec::linear("first", 3, 12, false),
        LayerSpec::linear("second", 12, 2, false).reading("first"),
    ])
    .unwrap();
    let policy = net_policy(&layout);
    let refused = |category: &str| {
        let dial = CategoryDial::new(category, 0.0).unwrap();
        Attenuation::new(&policy, &[dial]).unwrap_err().to_string()
    };
    assert!(refused("style/serif").contains("owns no region"));
    assert!(refused("style/script/kristi").contains("dial style/script"));
    // A whole that contains the owner is dialled with it.
    assert_eq!(dialled(&policy, "style", 0.0).edits().len(), 1);
    assert!(CategoryDial::new("style", 1.5).unwrap_err().to_string().contains("from 0 to 1"));
    let dial = CategoryDial::new("style/script", 0.0).unwrap().in_block("third");
    assert!(Attenuation::new(&policy, &[dial]).unwrap_err().to_string().contains("dial.block"));

    let attenuation = dialled(&policy, "style/script", 0.0);
    let text = |dtype, shape: Vec<usize>, bytes: usize| {
        let data = vec![0; bytes];
        let view = TensorView::new(dtype, shape, &data).unwrap();
        let bytes = safetensors::serialize([("second.weight", view)], None).unwrap();
        attenuation.apply(&bytes).map(drop).map_err(|error| error.to_string())
    };
    assert!(text(Dtype::F16, vec![2, 12], 48).is_ok());
    assert!(text(Dtype::F32, vec![12, 2], 96).unwrap_err().contains("second.weight"));
    assert!(text(Dtype::U8, vec![2, 12], 24).unwrap_err().contains("F32, F16"));
    assert!(attenuation.apply(b"nothing").unwrap_err().to_string().contains("safetensors"));
    let rows = RowFade { layer: "first".into(), neutral: 0 };
    assert!(attenuation.fade_rows(&rows).unwrap_err().to_string().contains("embedding"));
}

/// Inputs to forget lie mostly along the first feature, those to keep along all the others, with
/// some of each in the other's.
#[test]
fn the_projection_trades_one_side_for_the_other() {
    const I: usize = 6;
    let mut rng = StdRng::seed_from_u64(1);
    let mut rows = |of_first: f32, of_others: f32| -> Vec<f32> {
        let each = |k: usize| if k.is_multiple_of(I) { of_first } else { of_others };
        (0..200 * I).map(|k| each(k) * (rng.random::<f32>() - 0.5)).collect()
    };
    let (forget_x, retain_x) = (rows(4.0, 1.0), rows(0.2, 2.0));
    let (mut forget, mut retain) = (Covariance::new(I).unwrap(), Covariance::new(I).unwrap());
    forget.add(&forget_x).unwrap();
    retain.add(&retain_x).unwrap();
    let weight: Vec<f32> = (0..2 * I).map(|k| 0.5 + 0.1 * k as f32).collect();
    let bytes: Vec<u8> = weight.iter().flat_map(|w| w.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![2, I], &bytes).unwrap();
    let checkpoint = safetensors::serialize([("fc.weight", view)], None).unwrap();

    let mut last = -1.0;
    for strength in [0.0, 0.1, 0.5, 2.0] {
        let projection = Projection::new(&forget, &retain, strength, 1e-6).unwrap();
        let (after, change) = projection.apply(&checkpoint, "fc.weight").unwrap();
        assert!(change.forget > last, "{change:?}");
        last = change.forget;
        if strength == 0.5 {
            assert!(change.forget > 0.6 && change.retain < 0.03, "{change:?}");
        }
        // What it reports is what the layer does with these inputs.
        let after = SafeTensors::deserialize(&after).unwrap();
        let after = after.tensor("fc.weight").unwrap().data().as_chunks().0.to_vec();
        let after: Vec<f32> = after.into_iter().map(f32::from_le_bytes).collect();
        for (x, reported) in [(&forget_x, change.forget), (&retain_x, change.retain)] {
            let energy = |w: &dyn Fn(usize) -> f32| -> f64 {
                let out =
                    |row: &[f32], o: usize| -> f32 { (0..I).map(|i| w(o * I + i) * row[i]).sum() };
                x.chunks_exact(I)
                    .flat_map(|row| [out(row, 0), out(row, 1)])
                    .map(|y| f64::from(y).powi(2))
                    .sum()
            };
            let measured = energy(&|at| after[at] - weight[at]) / energy(&|at| weight[at]);
            assert!((measured - reported).abs() < 1e-4, "{measured} {reported}");
        }
    }
    assert!(Projection::new(&forget, &Covariance::new(I).unwrap(), 1.0, 1e-6).is_err());
    assert!(Projection::new(&forget, &retain, -1.0, 1e-6).is_err());
    assert!(Projection::new(&forget, &retain, 1.0, 0.0).is_err());
}
