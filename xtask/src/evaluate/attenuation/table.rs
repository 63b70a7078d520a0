//! `attenuation.md`.

use std::fmt::Write;

use super::{Curve, DialLoss, Group, Losses, Seed, Variant};

/// A claim about a routed run, against the unrouted run and the one without the group.
struct Claim {
    text: &'static str,
    /// Value of a seed, in percent.
    value: fn(&Seed, Variant) -> f64,
    /// What it must be.
    target: &'static str,
    holds: fn(f64) -> bool,
}

const CLAIMS: [Claim; 4] = [
    Claim {
        text: "public typefaces, region off, over unrouted",
        value: |seed, variant| {
            100.0 * (seed.of(variant).losses.public / unrouted(seed).public - 1.0)
        },
        target: "≤ +3 %",
        holds: |value| value <= 3.0,
    },
    Claim {
        text: "owned group, dial 1, over unrouted",
        value: |seed, variant| {
            100.0 * (first(seed, variant).loss / unrouted(seed).owned[0].loss - 1.0)
        },
        target: "≤ +10 %",
        holds: |value| value <= 10.0,
    },
    Claim {
        text: "rise at dial 0 over the rise of never training on it",
        value: |seed, variant| {
            let rise = last(seed, variant).loss - first(seed, variant).loss;
            let never = without(seed).owned_no_style - unrouted(seed).owned[0].loss;
            100.0 * rise / never
        },
        target: "≥ 75 %",
        holds: |value| value >= 75.0,
    },
    Claim {
        text: "the same, style row kept",
        value: |seed, variant| {
            let rise = last(seed, variant).row_kept - first(seed, variant).row_kept;
            let never = without(seed).owned[0].row_kept - unrouted(seed).owned[0].row_kept;
            100.0 * rise / never
        },
        target: "≥ 75 %",
        holds: |value| value >= 75.0,
    },
];

fn unrouted(seed: &Seed) -> &Losses {
    &seed.of(Variant::Unrouted).losses
}

fn without(seed: &Seed) -> &Losses {
    &seed.of(Variant::WithoutOwned).losses
}

fn first(seed: &Seed, variant: Variant) -> &DialLoss {
    &seed.of(variant).losses.owned[0]
}

fn last(seed: &Seed, variant: Variant) -> &DialLoss {
    seed.of(variant).losses.owned.last().expect("at least dial 1")
}

fn monotone(seed: &Seed, variant: Variant) -> bool {
    let dials = &seed.of(variant).losses.owned;
    dials.windows(2).all(|pair| pair[0].loss < pair[1].loss && pair[0].row_kept < pair[1].row_kept)
}

/// Mean and sample standard deviation.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

/// The whole page.
pub fn write(groups: &[Group], command: &str) -> String {
    let (seeds, outcome) = (groups[0].seeds.len(), &groups[0].seeds[0].outcomes[0].1);
    let mut page = format!(
        "# Attenuation\n\n\
         `{command}`: {} owned group{}, {seeds} seed{}, each group left out, trained \
         under a policy and trained as everybody ({} parameters, {} steps of the example's default batch).\n\n\
         ![loss of each owned group against the dial](attenuation.svg)\n\n",
        groups.len(),
        if groups.len() == 1 { "" } else { "s" },
        if seeds == 1 { "" } else { "s" },
        outcome.parameters,
        outcome.steps
    );
    page += EXPLANATION;
    page += "\n## What must hold\n";
    for group in groups {
        page += &claims(group);
    }
    page += RELEARNING;
    for group in groups {
        page += &relearning(group);
    }
    page += "\n## Losses\n\nMean ± standard deviation over the seeds.\n";
    for group in groups {
        page += &losses(group);
    }
    page + &closing(groups)
}

/// The policies under which each group was trained.
const POLICIES: [Variant; 2] = [Variant::All, Variant::Strict];

fn claims(group: &Group) -> String {
    let seeds = &group.seeds;
    let names: String = seeds.iter().map(|seed| format!("seed {} | ", seed.seed)).collect();
    let rule = "---:|".repeat(seeds.len() + 1);
    let mut page = format!(
        "\n| {} | policy | target | {names}mean | holds |\n|---|---|---|{rule}---|\n",
        group.name
    );
    let mut row = |text: &str, variant: Variant, target: &str, cells: String, holds: usize| {
        let (name, count) = (variant.name(), seeds.len());
        writeln!(page, "| {text} | {name} | {target} | {cells} | {holds} of {count} |")
            .expect("a string takes any text");
    };
    for claim in &CLAIMS {
        for variant in POLICIES {
            let values: Vec<f64> = seeds.iter().map(|seed| (claim.value)(seed, variant)).collect();
            let holds = values.iter().filter(|&&value| (claim.holds)(value)).count();
            let (mean, _) = spread(&values);
            let cells: String = values.iter().map(|value| format!("{value:+.1} % | ")).collect();
            row(claim.text, variant, claim.target, format!("{cells}{mean:+.1} %"), holds);
        }
    }
    for variant in POLICIES {
        let each: Vec<bool> = seeds.iter().map(|seed| monotone(seed, variant)).collect();
        let cells: String = each.iter().map(|&yes| if yes { "yes | " } else { "no | " }).collect();
        let holds = each.iter().filter(|&&yes| yes).count();
        row("loss rises with every step of the dial down", variant, "yes", cells, holds);
    }
    page
}

/// Curves of learning the group again, of each way by its runs, one a seed.
pub fn curves(group: &Group) -> Vec<(String, Vec<&Curve>)> {
    let routed = POLICIES.map(|variant| (variant, 0, format!(", {}", variant.name())));
    let without = [0, 1].map(|at| (Variant::WithoutOwned, at, String::new()));
    (routed.into_iter().chain(without))
        .map(|(variant, at, policy)| {
            let each = group.seeds.iter().filter_map(|seed| seed.of(variant).relearning.get(at));
            let each: Vec<&Curve> = each.collect();
            (each.first().map_or(String::new(), |curve| curve.from.clone() + &policy), each)
        })
        .filter(|(_, each)| !each.is_empty())
        .collect()
}

/// Mean loss of a way's runs after each number of steps.
pub fn mean_curve(each: &[&Curve]) -> Vec<(u64, f64)> {
    let steps = each[0].steps.iter().enumerate();
    let at = |k: usize| each.iter().map(|curve| curve.losses[k]).collect::<Vec<_>>();
    steps.map(|(k, &step)| (step, spread(&at(k)).0)).collect()
}

fn relearning(group: &Group) -> String {
    let ways = curves(group);
    let Some((_, first)) = ways.first() else {
        return String::new();
    };
    let steps: String = first[0].steps.iter().map(|step| format!(" {step} |")).collect();
    let rule = "---:|".repeat(first[0].steps.len());
    let mut page = format!("\n| {}: after steps |{steps}\n|---|{rule}\n", group.name);
    for (name, each) in &ways {
        let cells: String =
            mean_curve(each).iter().map(|(_, loss)| format!(" {loss:.4} |")).collect();
        writeln!(page, "| {name} |{cells}").expect("a string takes any text");
    }
    page
}

/// Loss tables: mean ± standard deviation over the seeds.
fn losses(group: &Group) -> String {
    let seeds = &group.seeds;
    let names: String =
        Variant::EACH.iter().map(|variant| format!(" {} |", variant.title())).collect();
    let rule = "---|".repeat(Variant::EACH.len());
    let mut page = format!("\n| {} |{names}\n|---|{rule}\n", group.name);
    let mut row = |name: &str, value: &dyn Fn(&Losses) -> Option<f64>| {
        let cell = |&variant: &Variant| {
            let each = seeds.iter().map(|seed| value(&seed.of(variant).losses));
            match each.collect::<Option<Vec<f64>>>() {
                Some(values) => {
                    let (mean, deviation) = spread(&values);
                    format!("{mean:.4} ± {deviation:.4}")
                }
                None => "–".into(),
            }
        };
        let cells: Vec<String> = Variant::EACH.iter().map(cell).collect();
        writeln!(page, "| {name} | {} |", cells.join(" | ")).expect("a string takes any text");
    };
    row("public typefaces, as trained", &|losses| Some(losses.public));
    row("public typefaces, region on", &|losses| Some(losses.public_region_on));
    row("owned group without a style", &|losses| Some(losses.owned_no_style));
    for (k, dial) in seeds[0].of(Variant::All).losses.owned.iter().enumerate() {
        let dial = dial.dial;
        row(&format!("owned group, dial {dial}"), &|losses| Some(losses.owned.get(k)?.loss));
        row(&format!("owned group, dial {dial}, style row kept"), &|losses| {
            Some(losses.owned.get(k)?.row_kept)
        });
    }
    page
}

fn closing(groups: &[Group]) -> String {
    let mut seconds = 0.0;
    let mut hashes = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        // The unrouted runs are every group's.
        let own = |variant: &Variant| at == 0 || *variant != Variant::Unrouted;
        let runs = group.seeds.iter().flat_map(|seed| &seed.outcomes);
        seconds += runs.filter(|(v, _)| own(v)).map(|(_, run)| run.train_seconds).sum::<f64>();
        for variant in POLICIES {
            let hash = group.seeds[0].of(variant).policy_hash.as_deref().unwrap_or_default();
            let begin = hash.get(..16).unwrap_or(hash);
            hashes.push(format!("{} `{}` {begin}", group.name, variant.name()));
        }
    }
    format!(
        "\nPolicy hashes begin: {}. Training took {:.0} minutes in all.\n",
        hashes.join(", "),
        seconds / 60.0
    )
}

const EXPLANATION: &str = "\
Losses are noise-prediction errors of the averaged weights. Every run answers the same questions: \
the same glyphs, noise levels and noise (common random numbers), whatever its own seed.

- **unrouted**: everybody trains everything, all channels always on; one run answers for every group.
- **without the group**: the same, but the rights-tracked group is left out of training.
- **all blocks** (`all`): the group owns 8 (at 16²) or 16 channels in every residual block, and the rows of the \
  style embedding that name its typefaces. Public samples see the region off. The public parts learn from the group \
  with a quarter of its weight: of what was tried on the third seed of `display`, 0, ¼, ½, and 1 in the outermost \
  blocks only, the least that brought its public loss within 3 %.
- **strict** (`strict`): the same region, and the group trains nothing else.

The dial fades the region's channels and, for the owned samples, their style embedding towards \
that of no style, since its row is part of the region: at 0 the model is asked without a style. So \
is the run that never saw the group, for which no row was ever trained: both are asked at the \
same conditioning. The rows \"style row kept\" fade the channels alone and keep the row; the run \
without the group is then asked with its row as it was initialised.
";

const RELEARNING: &str = "
## Learning it again

![loss of each owned group while it is learned again](attenuation-relearning.svg)

Loss on the group, told its style, after so many steps in which all weights train on its glyphs alone, without a policy and \
at one step size: from the checkpoint with the dial folded at 0, as anybody would be handed it; from the run that never saw \
the group; and from new weights. Means over the seeds. What was left in the weights would show as a curve below that of \
the run that never saw the group.
";
