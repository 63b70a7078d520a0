//! Policies: what they compile to, what they refuse, and what a switch turns off.

#[path = "routing/content.rs"]
mod content;
#[path = "routing/mistakes.rs"]
mod mistakes;
#[path = "routing/switching.rs"]
mod switching;

use gradroute::problem::NormKind;
use gradroute::routing::{
    Block, Categories, CompiledPolicy, DepthProfile, LayerSpec, ModelLayout, OwnedRegion, Policy,
    SwitchRule, Weights,
};

const EVERYWHERE: &str = include_str!("policies/script_everywhere.toml");
const UP: &str = include_str!("policies/script_up.toml");

/// Channels kept for the owner.
const OWN: usize = 16;

/// The residual blocks, with their widths.
const RESIDUAL: [(&str, usize); 4] =
    [("down.16", 32), ("down.8", 48), ("middle", 64), ("up.16", 32)];

/// A U-Net with a residual block in each of three blocks, as the policy files mean it.
fn unet() -> Vec<LayerSpec> {
    let mut layers = vec![
        LayerSpec::linear("condition.time", 8, 8, true),
        LayerSpec::embedding("condition.style", 5, 8),
        LayerSpec::conv2d("stem", 1, 32, [3, 3], 1, true),
    ];
    for (path, width) in RESIDUAL {
        let at = |name: &str| format!("{path}.{name}");
        let inner = width + OWN;
        let norm = NormKind::Group { groups: inner / 8 };
        layers.extend([
            LayerSpec::conv2d(at("conv1"), width, inner, [3, 3], 1, true),
            LayerSpec::linear(at("told"), 8, inner, true),
            LayerSpec::norm(at("norm2"), norm, inner, true)
                .reading(at("conv1"))
                .reading(at("told")),
            LayerSpec::conv2d(at("conv2"), inner, width, [3, 3], 1, true).reading(at("norm2")),
        ]);
    }
    layers.push(LayerSpec::conv2d("head.conv", 32, 1, [3, 3], 1, true));
    layers
}

fn layout() -> ModelLayout {
    ModelLayout::new(unet()).unwrap()
}

/// Ids 1 and 3 are scripts.
fn typefaces() -> Categories {
    let paths =
        ["style/serif/gelasio", "style/script/kristi", "style/sans/lato", "style/script/pacifico"];
    Categories::new(paths).unwrap()
}

fn compiled(policy: &str) -> CompiledPolicy {
    Policy::from_toml(policy).unwrap().compile(&layout(), &typefaces()).unwrap()
}

fn layer(compiled: &CompiledPolicy, path: &str) -> usize {
    compiled.layout().index(path).unwrap()
}

#[test]
fn the_region_is_carried_through_every_residual_block() {
    let compiled = compiled(EVERYWHERE);
    for (at, (spec, routing)) in
        compiled.layout().layers().iter().zip(compiled.layers()).enumerate()
    {
        let name = spec.path.rsplit('.').next().unwrap();
        for o in 0..spec.outputs {
            for i in 0..spec.features {
                let owned = match name {
                    "conv1" | "told" | "norm2" => o >= spec.outputs - OWN,
                    "conv2" => i >= spec.features - OWN,
                    "style" => i == 1 || i == 3,
                    _ => false,
                };
                let region = routing.regions().region_at(o, i);
                assert_eq!(region, usize::from(owned), "{} [{o}, {i}]", spec.path);
            }
            let owned = matches!(name, "conv1" | "told" | "norm2") && o >= spec.outputs - OWN;
            assert_eq!(routing.regions().bias_region_at(o), usize::from(owned), "{}", spec.path);
        }
        let owned: Vec<usize> = compiled.regions_of(at).collect();
        assert_eq!(owned.len(), routing.regions().len() - 1);
        assert!(owned.iter().all(|&region| region == 0));
        let width = spec.input_width().unwrap_or_default();
        let reads = compiled.reads_of(at);
        match name {
            "norm2" | "conv2" => assert_eq!(reads, [(width - OWN..width, 0)]),
            _ => assert!(reads.is_empty(), "{}", spec.path),
        }
    }
}

#[test]
fn owners_train_their_region_and_the_public_the_rest() {
    let compiled = compiled(EVERYWHERE);
    for routing in compiled.layers() {
        for category in compiled.categories().ids() {
            let owner = category % 2 == 1;
            for region in 0..routing.regions().len() {
                let expected = f32::from((region > 0) == owner);
                assert_eq!(routing.route(category, region), expected);
                assert_eq!(routing.flow(category, region), 1.0);
            }
        }
    }
    assert!(compiled.owns(1, 0) && compiled.owns(3, 0) && !compiled.owns(2, 0));
}

#[test]
fn weights_follow_block_and_region() {
    let compiled = compiled(UP);
    let tables = |path: &str, category, region| {
        let routing = &compiled.layers()[layer(&compiled, path)];
        [routing.route(category, region), routing.flow(category, region)]
    };
    assert_eq!(tables("down.16.conv1", 1, 0), [0.0, 0.0]);
    assert_eq!(tables("up.16.conv1", 1, 0), [0.25, 1.0]);
    assert_eq!(tables("up.16.conv2", 1, 1), [1.5, 1.0]);
    assert_eq!(tables("up.16.conv2", 0, 1), [0.0, 1.0]);
    // A region that the profile does not mention: route 1, and the block's flow.
    assert_eq!(tables("condition.style", 1, 1), [1.0, 0.0]);
    assert_eq!(tables("condition.style", 0, 0), [1.0, 1.0]);
    let style: Vec<_> = compiled.regions_of(layer(&compiled, "condition.style")).collect();
    assert_eq!((style, compiled.region("script rows")), (vec![1], Some(1)));
}

#[test]
fn a_deeper_profile_overrides_what_it_mentions() {
    let block = |name, layers| Block::new(name, layers).unwrap();
    let profile = |category| DepthProfile::new(category).unwrap();
    let policy = Policy::new(
        vec![block("a", "a"), block("b", "b")],
        vec![OwnedRegion::new("r", "x").unwrap().outputs("a", "..2").unwrap()],
        vec![
            // Deeper first: the order says nothing.
            profile("x/y/z").block("b", Weights::route(-0.5)).region("r", Weights::flow(0.25)),
            profile("x").all_blocks(Weights::both(0.5, 2.0)).region("r", Weights::route(3.0)),
            profile("/").block("a", Weights::flow(0.0)).region("r", Weights::route(7.0)),
        ],
    )
    .unwrap();
    let layers = ["a", "b"].map(|path| LayerSpec::linear(path, 4, 4, false));
    let layout = ModelLayout::new(layers.to_vec()).unwrap();
    let categories = Categories::new(["x/y/z", "x/y", "other"]).unwrap();
    let compiled = policy.compile(&layout, &categories).unwrap();
    let table = |layer: usize, category, region| {
        let routing = &compiled.layers()[layer];
        [routing.route(category, region), routing.flow(category, region)]
    };
    assert_eq!([table(0, 0, 0), table(1, 0, 0)], [[0.5, 2.0], [-0.5, 2.0]]);
    assert_eq!([table(0, 1, 0), table(1, 1, 0)], [[0.5, 2.0], [0.5, 2.0]]);
    assert_eq!([table(0, 2, 0), table(1, 2, 0)], [[1.0, 0.0], [1.0, 1.0]]);
    assert_eq!(
        [table(0, 0, 1), table(0, 1, 1), table(0, 2, 1)],
        [[3.0, 0.25], [3.0, 2.0], [7.0, 0.0]]
    );
}

#[test]
fn of_several_labels_the_smallest_magnitude_decides() {
    let text = r#"
        block = [{ name = "a", layers = "a" }, { name = "b", layers = "b" }]
        [[region]]
        name = "r"
        owner = "p"
        parts = [{ layers = "a", outputs = "0" }]
        [[profile]]
        category = "p"
        blocks = { a = { route = 0.5, flow = -2 }, b = { route = 1 } }
        [[profile]]
        category = "q"
        blocks = { a = { route = -0.25, flow = 3 }, b = { route = -1 } }
    "#;
    let layers = ["a", "b"].map(|path| LayerSpec::linear(path, 2, 2, false));
    let mut categories = Categories::new(["p/1", "p/2", "q"]).unwrap();
    let mixed = categories.label_set(&[0, 2]).unwrap();
    let owners = categories.label_set(&[0, 1]).unwrap();
    let policy = Policy::from_toml(text).unwrap();
    let compiled =
        policy.compile(&ModelLayout::new(layers.to_vec()).unwrap(), &categories).unwrap();
    let [a, b] = [0, 1].map(|layer| &compiled.layers()[layer]);
    assert_eq!([a.route(mixed, 0), a.flow(mixed, 0), b.route(mixed, 0)], [-0.25, -2.0, -1.0]);
    assert_eq!([a.route(mixed, 1), a.route(owners, 1)], [0.0, 1.0]);
    assert!(compiled.owns(owners, 0) && !compiled.owns(mixed, 0));
    assert_eq!(compiled.block_flow(mixed, 0), -2.0);
}

#[test]
fn a_blocks_route_is_the_mean_and_its_reach_the_largest_over_its_parameters() {
    let compiled = compiled(UP);
    for category in compiled.categories().ids() {
        for block in 0..compiled.blocks().len() {
            let (mut sum, mut count, mut reach) = (0.0, 0, 0.0f32);
            for (at, spec) in compiled.layout().layers().iter().enumerate() {
                if compiled.block_of(at) != Some(block) {
                    continue;
                }
                let routing = &compiled.layers()[at];
                for o in 0..spec.outputs {
                    for i in 0..spec.features * spec.taps {
                        let region = routing.regions().region_at(o, i % spec.features);
                        sum += f64::from(routing.route(category, region));
                        reach = reach.max(routing.route(category, region).abs());
                    }
                    if spec.bias {
                        let region = routing.regions().bias_region_at(o);
                        sum += f64::from(routing.route(category, region));
                        reach = reach.max(routing.route(category, region).abs());
                    }
                }
                count += spec.parameters();
            }
            let mean = (sum / count as f64) as f32;
            assert_eq!(compiled.block_route(category, block), mean, "{category}, block {block}");
            assert_eq!(compiled.block_reach(category, block), reach, "{category}, block {block}");
        }
    }
    assert_eq!(compiled.block_flow(1, 1), 0.0);
    assert_eq!(compiled.block_of(compiled.layers().len()), None);
    let up = compiled.block_route(1, 3);
    assert!(up > 0.25 && up < 1.5, "a quarter outside of the region, 1.5 inside: {up}");
}

#[test]
fn depthwise_and_grouped_convolutions_carry_whole_groups() {
    let policy = |part: &str| {
        Policy::from_toml(&format!(
            "block = [{{ name = 'all', layers = '*' }}]\n profile = [{{ category = '/' }}]\n \
             [[region]]\n name = 'r'\n owner = 's'\n switch = 'strict'\n parts = [{part}]"
        ))
        .unwrap()
    };
    let net = |groups| {
        ModelLayout::new(vec![
            LayerSpec::linear("a", 3, 8, true),
            LayerSpec::conv2d("b", 8, 16, [3, 3], groups, true).reading("a"),
            LayerSpec::conv2d("c", 16, 2, [1, 1], 1, false).reading("b"),
        ])
        .unwrap()
    };
    let categories = Categories::new(["s"]).unwrap();
    for (groups, fits) in [(8, true), (4, true), (2, false)] {
        let result =
            policy("{ layers = 'a', outputs = '-2..' }").compile(&net(groups), &categories);
        let Ok(compiled) = result else {
            assert!(!fits, "{groups} groups");
            let text = result.unwrap_err().to_string();
            assert!(text.contains("region \"r\", layer \"b\"") && text.contains("groups of 4"));
            continue;
        };
        assert!(fits, "{groups} groups");
        let b = compiled.layers()[1].regions();
        assert_eq!(b.owned()[0][0].outputs, 12..16);
        assert_eq!(b.bias_tiles(), [(0..12, 0), (12..16, 1)]);
        assert_eq!(compiled.reads_of(1), [(6..8, 0)]);
        assert_eq!(compiled.layers()[2].regions().input_spans(), [(0..12, 0), (12..16, 1)]);
    }
}

#[test]
fn a_region_may_cross_itself() {
    // Reserved units in two hidden layers in a row: in the middle layer both bands.
    let policy = Policy::new(
        vec![Block::new("all", "*").unwrap()],
        vec![
            OwnedRegion::new("r", "s")
                .unwrap()
                .outputs("[ab]", "-2..")
                .unwrap()
                .switch(SwitchRule::Strict),
        ],
        vec![DepthProfile::new("/").unwrap().region("r", Weights::flow(0.5))],
    )
    .unwrap();
    let layout = ModelLayout::new(vec![
        LayerSpec::linear("a", 4, 6, true),
        LayerSpec::linear("b", 6, 6, true).reading("a"),
        LayerSpec::linear("c", 6, 4, true).reading("b"),
    ])
    .unwrap();
    let compiled = policy.compile(&layout, &Categories::new(["s"]).unwrap()).unwrap();
    let b = compiled.layers()[1].regions();
    assert_eq!(
        [b.region_at(0, 5), b.region_at(5, 0), b.region_at(5, 5), b.region_at(0, 0)],
        [1, 1, 1, 0]
    );
    assert_eq!((b.len(), b.bias_region_at(5), b.bias_region_at(0)), (2, 1, 0));
    assert_eq!([b.input_region_at(5), b.input_region_at(0)], [1, 0]);
    assert_eq!(compiled.layers()[1].flow(0, 1), 0.5);
}

#[test]
fn an_adapter_may_be_owned_as_a_whole() {
    let policy = Policy::from_toml(
        r#"
        block = [{ name = "all", layers = "*" }]
        profile = [{ category = "/" }]
        [[region]]
        name = "adapter"
        owner = "style/script"
        switch = "strict"
        # Two ranges that overlap are one.
        parts = [{ layers = "*.a", outputs = "..3" }, { layers = "*.a", outputs = "2.." }]
        [[region]]
        name = "extra"
        owner = "style/serif"
        parts = [{ layers = "extra" }]
        "#,
    )
    .unwrap();
    let layout = ModelLayout::new(vec![
        LayerSpec::linear("lora.a", 8, 4, false),
        LayerSpec::linear("lora.b", 4, 8, false).reading("lora.a"),
        LayerSpec::linear("extra", 8, 8, true),
    ])
    .unwrap();
    let compiled = policy.compile(&layout, &typefaces()).unwrap();
    for routing in compiled.layers() {
        assert!(routing.regions().tiles().iter().all(|tile| tile.region == 1));
    }
    assert_eq!(compiled.reads_of(1), [(0..4, 0)]);
    assert_eq!(compiled.layers()[2].regions().bias_tiles(), [(0..8, 1)]);
    assert_eq!(compiled.regions_of(2).collect::<Vec<_>>(), [1]);
}
