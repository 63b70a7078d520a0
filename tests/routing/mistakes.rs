//! Every kind of mistake has its own message, and the message names the place.

use std::collections::HashSet;

use gradroute::problem::NormKind;
use gradroute::routing::{Categories, Features, LayerSpec, ModelLayout, Policy};

const SOUND: &str = r#"
[[block]]
name = "early"
layers = "{conv1,norm}"

[[block]]
name = "late"
layers = "{conv2,table}"

[[region]]
name = "script"
owner = "style/script"
switch = "strict"
parts = [{ layers = "conv1", outputs = "-16.." }]

[[region]]
name = "rows"
owner = "style/serif"
parts = [{ layers = "table", inputs = "owner" }]

[[profile]]
category = "style"
route = 0.5

[[profile]]
category = "style/script"
blocks.early = { route = 1.0 }
regions.script = { flow = 0.5 }
"#;

fn net(norm: NormKind) -> ModelLayout {
    ModelLayout::new(vec![
        LayerSpec::conv2d("conv1", 32, 48, [3, 3], 1, true),
        LayerSpec::norm("norm", norm, 48, true).reading("conv1"),
        LayerSpec::conv2d("conv2", 48, 32, [3, 3], 1, true).reading("norm"),
        LayerSpec::embedding("table", 3, 8),
    ])
    .unwrap()
}

fn categories() -> Categories {
    Categories::new(["style/serif/a", "style/script/b"]).unwrap()
}

fn outcome(text: &str, layout: &ModelLayout, categories: &Categories) -> Result<(), String> {
    let policy = Policy::from_toml(text).map_err(|mistake| mistake.to_string())?;
    policy.compile(layout, categories).map(drop).map_err(|mistake| mistake.to_string())
}

/// What is replaced by what, and what the message must say.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    // The document.
    ("switch = \"strict\"", "swich = \"strict\"", &["line 13, column 1", "swich"]),
    ("route = 0.5", "route = \"half\"", &["line 23, column 9", "half"]),
    ("route = 0.5", "route = ", &["line 23, column"]),
    ("strict", "stricter", &["line 13", "stricter"]),
    ("style/serif\"", "style//serif\"", &["line 18, column 9", "style//serif"]),
    ("\"-16..\"", "\"sixteen\"", &["line 14", "sixteen"]),
    ("{conv2,table}", "{conv2,table", &["line 8, column 10", "{conv2,table"]),
    ("regions.script", "regions.script.depth", &["line 28", "depth"]),
    ("name = \"late\"", "", &["line 6", "missing field `name`"]),
    // Names and numbers.
    ("name = \"late\"", "name = \"early\"", &["block \"early\"", "twice"]),
    ("name = \"rows\"", "name = \"script\"", &["region \"script\"", "twice"]),
    ("category = \"style/script\"", "category = \"style\"", &["profile \"style\"", "twice"]),
    ("name = \"late\"", "name = \"\"", &["block", "empty"]),
    ("blocks.early", "blocks.erly", &["profile \"style/script\"", "no block \"erly\""]),
    ("regions.script", "regions.scrpt", &["profile \"style/script\"", "no region \"scrpt\""]),
    ("route = 0.5", "route = nan", &["profile \"style\"", "route weight NaN"]),
    ("{ flow = 0.5", "{ flow = -inf", &["region \"script\"", "flow weight -inf"]),
    ("{ route = 1.0", "{ route = 1e39", &["block \"early\"", "route weight inf"]),
    ("\"strict\"", "{ public_off = 1.5 }", &["region \"script\"", "1.5 is not between 0 and 1"]),
    ("\"strict\"", "{ public_off = nan }", &["region \"script\"", "NaN is not between 0 and 1"]),
    ("[{ layers = \"conv1\", outputs = \"-16..\" }]", "[]", &["region \"script\"", "no parts"]),
    // Against the model.
    ("{conv2,table}", "conv2", &["layer \"table\"", "no block"]),
    ("{conv2,table}", "{conv2,table,norm}", &["layer \"norm\"", "\"early\" and \"late\" both"]),
    (
        "{conv1,norm}",
        "{conv1,norm,conv2,table}\"\n[[block]]\nname = \"x\"\nlayers = \"y",
        &["layer \"conv2\"", "\"early\" and \"late\""],
    ),
    (
        "[[region]]",
        "[[block]]\nname = \"x\"\nlayers = \"y.*\"\n[[region]]",
        &["block \"x\"", "no layer matches `y.*`"],
    ),
    (
        "{conv1,norm}\"",
        "norm\"\n[[block]]\nname = \"x\"\nlayers = \"conv1\"",
        &["block \"x\"", "begins before block \"early\""],
    ),
    (
        "layers = \"conv1\"",
        "layers = \"*.conv1\"",
        &["region \"script\"", "no layer matches `*.conv1`"],
    ),
    (
        "\"-16..\"",
        "\"-49..\"",
        &["region \"script\", layer \"conv1\"", "output features -49.. exceed", "48"],
    ),
    (
        "\"-16..\"",
        "\"20..20\"",
        &["region \"script\", layer \"conv1\"", "20..20 of its 48 are none"],
    ),
    (
        "\"-16..\"",
        "\"-12..\"",
        &["region \"script\", layer \"norm\"", "GroupNorm over 8", "36..48"],
    ),
    (
        "layers = \"table\", inputs = \"owner\"",
        "layers = \"conv2\", inputs = \"40..\"",
        &["region \"rows\", layer \"conv2\"", "overlaps region \"script\""],
    ),
    (
        "\"conv1\"",
        "\"conv2\"",
        &["region \"script\", layer \"conv2\"", "no layer says that it reads"],
    ),
    (
        "outputs = \"-16..\"",
        "outputs = \"-16..\", inputs = \"3\"",
        &["region \"script\"", "no layer reads any"],
    ),
    // Against the categories.
    ("owner = \"style/serif\"", "owner = \"style/ser\"", &["region \"rows\"", "`style/ser`"]),
    (
        "category = \"style/script\"",
        "category = \"style/blackletter\"",
        &["profile \"style/blackletter\"", "no category"],
    ),
    (
        "category = \"style\"",
        "category = \"style/serif/a/x\"",
        &["profile \"style/serif/a/x\"", "no category"],
    ),
    (
        "category = \"style\"\n",
        "category = \"style/script/b\"\n",
        &["category \"style/serif/a\"", "no profile covers it"],
    ),
];

#[test]
fn each_mistake_has_its_own_message() {
    let layout = net(NormKind::Group { groups: 6 });
    outcome(SOUND, &layout, &categories()).unwrap();
    let mut seen = HashSet::new();
    for (from, to, says) in MISTAKES {
        assert!(SOUND.contains(from), "{from}");
        let text = outcome(&SOUND.replacen(from, to, 1), &layout, &categories())
            .expect_err(&format!("{from} → {to} is accepted"));
        for part in *says {
            assert!(text.contains(part), "{from} → {to}\n{text}\ndoes not say: {part}");
        }
        assert!(text.starts_with("policy, "), "{text}");
        assert!(seen.insert(text.clone()), "said before: {text}");
    }
}

#[test]
fn a_policy_without_blocks_is_refused() {
    let text = Policy::from_toml("block = []").unwrap_err().to_string();
    assert_eq!(text, "policy, blocks: there is none");
}

#[test]
fn normalisations_across_the_region_are_refused() {
    for (norm, name) in [(NormKind::Layer, "LayerNorm"), (NormKind::Rms, "RMSNorm")] {
        let text = outcome(SOUND, &net(norm), &categories()).unwrap_err();
        assert!(text.contains("region \"script\", layer \"norm\""), "{text}");
        assert!(text.contains(name) && text.contains("48 features"), "{text}");
        // A region that owns all of the features has nothing to be mixed with.
        outcome(&SOUND.replace("-16..", ".."), &net(norm), &categories()).unwrap();
    }
}

#[test]
fn a_sum_must_be_owned_in_all_of_its_terms() {
    let layout = ModelLayout::new(vec![
        LayerSpec::linear("a", 4, 48, true),
        LayerSpec::linear("b", 4, 48, true),
        LayerSpec::linear("c", 48, 4, true).reading("a").reading("b"),
    ])
    .unwrap();
    let policy = |layers: &str| {
        format!(
            "block = [{{ name = 'all', layers = '*' }}]\n profile = [{{ category = '/' }}]\n \
             [[region]]\n name = 'r'\n owner = 'style/script'\n switch = 'strict'\n \
             parts = [{{ layers = '{layers}', outputs = '-16..' }}]"
        )
    };
    outcome(&policy("[ab]"), &layout, &categories()).unwrap();
    let text = outcome(&policy("a"), &layout, &categories()).unwrap_err();
    assert!(
        text.contains("region \"r\", layer \"c\"") && text.contains("a and b added up"),
        "{text}"
    );
}

#[test]
fn channels_of_grouped_convolutions_are_owned_by_output() {
    let layout = ModelLayout::new(vec![LayerSpec::conv2d("a", 8, 8, [3, 3], 4, true)]).unwrap();
    let text = "block = [{ name = 'all', layers = '*' }]\n profile = [{ category = '/' }]\n \
                [[region]]\n name = 'r'\n owner = 'style'\n parts = [{ layers = 'a', inputs = '0' }]";
    let text = outcome(text, &layout, &categories()).unwrap_err();
    assert!(text.contains("layer \"a\"") && text.contains("per group"), "{text}");
}

#[test]
fn a_part_that_names_no_features_does_not_mean_all() {
    let sound = Policy::from_toml(SOUND).unwrap();
    let mut regions = sound.regions().to_vec();
    regions[0].parts[0].outputs = Some(Features::Ranges(Vec::new()));
    let policy = Policy::new(sound.blocks().to_vec(), regions, sound.profiles().to_vec());
    let text = policy.unwrap_err().to_string();
    assert!(text.contains("region \"script\"") && text.contains("no features"), "{text}");
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let text = |path: &std::path::Path| Policy::read(path).unwrap_err().to_string();
    assert!(text(&path).contains("policy.toml"));
    std::fs::write(&path, "\n\nblock = 3").unwrap();
    assert!(text(&path).contains("policy.toml, line 3, column 9"), "{}", text(&path));
    std::fs::write(&path, SOUND).unwrap();
    assert_eq!(Policy::read(&path).unwrap(), Policy::from_toml(SOUND).unwrap());
}
