//! `cargo xtask evaluate lds`: do recorded influences predict what retraining shows?

use std::fmt::Write;
use std::ops::Range;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::amount::Halves;
use super::chart::{self, Interval};
use super::retraining::{self, Arguments, Method, Setup, Task, cell, chose, verdict};
use super::stamp::Stamp;
use super::statistics::{bootstrap, mean, mean_interval, mean_of};

const FULL: &str = "full gradient";
const COUNT: &str = "count sketch 256";
const TWO_SIDED: &str = "two-sided k=16";
/// D-TRAK's figure on CIFAR-2 (Zheng et al. 2024), as ANCHORS has it.
const D_TRAK: f64 = 0.34;

/// Half-subsets the bars ask for.
const ENOUGH: u64 = 100;

#[derive(Deserialize)]
struct Outcome {
    setup: Setup,
    #[serde(flatten)]
    halves: Halves,
    validation: usize,
    measured: Option<Stamp>,
    agreement: Vec<f64>,
    scores: Vec<Judged>,
}

#[derive(Deserialize)]
struct Judged {
    method: Method,
    /// By query.
    lds: Vec<f64>,
}

/// A score with the damping the choosing queries like best, as the others judge it.
struct Row<'a> {
    method: &'a Method,
    judges: Vec<f64>,
}

impl Row<'_> {
    fn value(&self) -> f64 {
        mean(&self.judges)
    }

    fn interval(&self) -> Range<f64> {
        mean_interval(&self.judges)
    }
}

impl Outcome {
    fn parts(&self, lds: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (choose, judge): (Vec<_>, Vec<_>) =
            lds.iter().enumerate().partition(|(query, _)| chose(*query, self.validation));
        let values = |part: Vec<(usize, &f64)>| part.into_iter().map(|(_, lds)| *lds).collect();
        (values(choose), values(judge))
    }

    /// One row for each storage and name, in the order measured.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<(f64, Row)> = Vec::new();
        for judged in &self.scores {
            let (choose, judges) = self.parts(&judged.lds);
            let (worth, method) = (mean(&choose), &judged.method);
            let row = Row { method, judges };
            let same = |(_, known): &&mut (f64, Row)| {
                known.method.storage == method.storage && known.method.name == method.name
            };
            match rows.iter_mut().find(same) {
                Some(known) if known.0 < worth => *known = (worth, row),
                Some(_) => {}
                None => rows.push((worth, row)),
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// A claim and what was measured.
struct Claim {
    text: String,
    bar: String,
    measured: String,
    holds: bool,
}

/// Measures and records.
pub fn run(arguments: &Arguments) -> Result<()> {
    let outcome: Outcome = retraining::measured(arguments, "lds")?;
    let rows = outcome.rows();
    let claims = match arguments.task {
        Task::Digits => digits(&rows)?,
        Task::Glyphs | Task::Typefaces => glyphs(&rows)?,
    };
    let name = format!("lds-{}", arguments.task.name());
    let picture = retraining::record(&name, &page(&outcome, &rows, &claims, arguments.task))?;
    let intervals: Vec<Interval> = rows
        .iter()
        .map(|row| Interval {
            label: row.method.title(),
            value: row.value(),
            interval: row.interval(),
            strong: !row.method.extra_pass,
        })
        .collect();
    chart::intervals(&picture, "LDS (95 % interval over queries)", &intervals)
}

fn find<'a, 'b>(rows: &'a [Row<'b>], storage: &str, name: &str) -> Result<&'a Row<'b>> {
    let same = |row: &&Row| row.method.storage == storage && row.method.name == name;
    rows.iter().find(same).with_context(|| format!("no {name} of {storage} was measured"))
}

fn at_least(row: &Row, bar: f64) -> Claim {
    Claim {
        text: row.method.title(),
        bar: format!("≥ {bar}"),
        measured: cell(row.value(), &row.interval()),
        holds: row.value() >= bar,
    }
}

fn digits(rows: &[Row]) -> Result<Vec<Claim>> {
    let full = find(rows, FULL, "whitened")?;
    let mut claims = Vec::new();
    for (storage, bar) in [(TWO_SIDED, 0.55), (COUNT, 0.6)] {
        let row = find(rows, storage, "whitened")?;
        claims.push(at_least(row, bar));
        let ratio = row.value() / full.value();
        let interval = bootstrap(full.judges.len(), |drawn| {
            mean_of(&row.judges, drawn) / mean_of(&full.judges, drawn)
        });
        claims.push(Claim {
            text: format!("the same over {}", full.method.title()),
            bar: "≥ 0.90".into(),
            measured: cell(ratio, &interval),
            holds: ratio >= 0.9,
        });
    }
    Ok(claims)
}

fn glyphs(rows: &[Row]) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for storage in [TWO_SIDED, COUNT] {
        let row = find(rows, storage, "whitened, by phases")?;
        claims.push(at_least(row, D_TRAK));
        let trak = find(rows, storage, "TRAK")?;
        let difference: Vec<f64> =
            row.judges.iter().zip(&trak.judges).map(|(a, b)| a - b).collect();
        claims.push(Claim {
            text: format!("the same less {}", trak.method.title()),
            bar: "> 0".into(),
            measured: cell(mean(&difference), &mean_interval(&difference)),
            holds: mean(&difference) > 0.0,
        });
    }
    Ok(claims)
}

fn page(outcome: &Outcome, rows: &[Row], claims: &[Claim], task: Task) -> String {
    let Halves { subsets, seeds } = outcome.halves;
    let mut page = format!(
        "# LDS, {name}\n\n`{}`: {subsets} half-subsets, retrained with {seeds} seed{} each.\n\n\
         ![LDS of each score](lds-{name}.svg)\n\n",
        retraining::command("lds", task, Some(outcome.halves), None),
        if seeds == 1 { "" } else { "s" },
        name = task.name(),
    );
    page += &outcome.setup.paragraph();
    page += EXPLANATION;
    if rows.iter().any(|row| row.method.name.ends_with("by phases")) {
        page += BY_PHASES;
    }
    if subsets < ENOUGH {
        page += PRELIMINARY;
    }
    if !outcome.agreement.is_empty() {
        let agreement = &outcome.agreement;
        writeln!(
            page,
            "\nTwo halves of the seeds agree with each other by {} (Spearman over the subsets, mean over \
             queries): no score can do much better than the root of that.",
            cell(mean(agreement), &mean_interval(agreement))
        )
        .expect("a string takes any text");
    }
    page += "\n## What must hold\n\n| | bar | measured | holds |\n|---|---|---|---|\n";
    for Claim { text, bar, measured, holds } in claims {
        writeln!(page, "| {text} | {bar} | {measured} | {} |", verdict(*holds))
            .expect("a string takes any text");
    }
    page += "\n## All scores\n\n| storage | score | another pass over the data | damping | LDS |\n|---|---|---|---|---|\n";
    for row in rows {
        let Method { storage, name, extra_pass, .. } = row.method;
        let pass = if *extra_pass { "yes" } else { "no" };
        let (damping, value) = (row.method.damping(), cell(row.value(), &row.interval()));
        writeln!(page, "| {storage} | {name} | {pass} | {damping} | {value} |")
            .expect("a string takes any text");
    }
    page + &dampings(outcome) + &retraining::closing(outcome.measured.as_ref())
}

/// LDS of the whitened scores at every damping, on the judging queries.
fn dampings(outcome: &Outcome) -> String {
    let mut page = String::from(
        "\n## Damping\n\nLDS of the record's whitened scores on the judging queries at each damping, to \
         show what hangs on it; none of this chose anything.\n\n| storage | damping | LDS |\n|---|---|---|\n",
    );
    for judged in outcome.scores.iter().filter(|it| it.method.name == "whitened") {
        let (_, judges) = outcome.parts(&judged.lds);
        let (storage, damping) = (&judged.method.storage, judged.method.damping());
        writeln!(page, "| {storage} | {damping} | {:.3} |", mean(&judges))
            .expect("a string takes any text");
    }
    page
}

const PRELIMINARY: &str = "
Fewer than 100 half-subsets: a preliminary figure. The intervals say nothing of how few subsets there are.
";

const EXPLANATION: &str = "
The linear datamodeling score (Park et al. 2023): for each query, Spearman's correlation over the \
subsets between the sum of the members' scores and how low the retrained model's loss on the query \
is; the mean over queries, with a 95 % bootstrap interval over queries.

Every fourth query chooses the damping, the others judge.

- **grad-dot**: the final model's gradients of sample and query.
- **TRAK**: the same, whitened, as Park et al. do it with margins; needs another pass over the training data, too.
- **dot**, **cosine**: what the training loop recorded of the sample, against the query's final gradient.
- **whitened**: the same under the inverse of the record's damped second moment, block by block.
- **by self-influence**: divided by the root of the sample's influence on itself.
- **queries at checkpoints**: the query's gradient averaged over checkpoints of the run.
";

const BY_PHASES: &str = "\
- **by phases**: the run's record in phases that end at these checkpoints, each under its own whitening and \
  against the query's gradient at its end, all of them in units of their own size and added up.
";
