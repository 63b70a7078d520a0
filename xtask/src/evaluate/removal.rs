//! `cargo xtask evaluate removal`: does a query suffer without its highest-scoring samples?

use std::fmt::Write;
use std::ops::Range;

use anyhow::Result;
use serde::Deserialize;

use super::amount::Halves;
use super::chart::{self, Line};
use super::retraining::{self, Arguments, Method, Setup, Task, cell, verdict};
use super::stamp::Stamp;
use super::statistics::{bootstrap, mean, mean_interval, mean_of};

/// The share that must move the query three times as much as at random.
const SHARE: f64 = 0.05;
const TIMES: f64 = 3.0;

#[derive(Deserialize)]
struct Outcome {
    setup: Setup,
    halves: Option<Halves>,
    seeds: u64,
    measured: Option<Stamp>,
    shares: Vec<f64>,
    base: Vec<f64>,
    /// `[shares][draws][queries]`.
    random: Vec<Vec<Vec<f64>>>,
    top: Vec<Top>,
}

#[derive(Deserialize)]
struct Top {
    method: Method,
    /// `[shares][queries]`.
    rise: Vec<Vec<f64>>,
}

impl Outcome {
    /// By query, the mean over the draws of what random samples do, signed or by size.
    fn random(&self, share: usize, value: fn(f64) -> f64) -> Vec<f64> {
        let draws = &self.random[share];
        let of = |q| mean(&draws.iter().map(|draw| value(draw[q])).collect::<Vec<_>>());
        (0..self.base.len()).map(of).collect()
    }

    /// How many times as much as random samples the top ones move the queries, and its interval.
    fn times(&self, top: &Top, share: usize) -> (f64, Range<f64>) {
        let (rise, random) = (&top.rise[share], self.random(share, f64::abs));
        let interval =
            bootstrap(rise.len(), |drawn| mean_of(rise, drawn) / mean_of(&random, drawn));
        (mean(rise) / mean(&random), interval)
    }
}

/// Measures and records.
pub fn run(arguments: &Arguments) -> Result<()> {
    let outcome: Outcome = retraining::measured(arguments, "removal")?;
    let name = format!("removal-{}", arguments.task.name());
    let picture = retraining::record(&name, &page(&outcome, arguments.task))?;
    let line = |label: String, at: &dyn Fn(usize) -> Vec<f64>| Line {
        label,
        points: (outcome.shares.iter().enumerate())
            .map(|(k, share)| (100.0 * share, mean(&at(k)), mean_interval(&at(k))))
            .collect(),
    };
    let mut lines: Vec<Line> = (outcome.top.iter())
        .map(|top| line(top.method.title(), &|k| top.rise[k].clone()))
        .collect();
    lines.push(line("random samples".into(), &|k| outcome.random(k, |rise| rise)));
    let axes = ["% of the training samples taken away", "rise of the query's loss"];
    chart::lines(&picture, axes, &lines)
}

fn page(outcome: &Outcome, task: Task) -> String {
    let draws = outcome.random[0].len();
    let mut page = format!(
        "# Removal, {name}\n\n`{}`: {} queries, each model retrained with {} seed{}; {draws} random \
         draws of each size.\n\n![rise of the loss](removal-{name}.svg)\n\n",
        retraining::command("removal", task, outcome.halves, Some(outcome.seeds)),
        outcome.base.len(),
        outcome.seeds,
        if outcome.seeds == 1 { "" } else { "s" },
        name = task.name(),
    );
    page += &outcome.setup.paragraph();
    page += &EXPLANATION.replace("BASE", &format!("{:.4}", mean(&outcome.base)));
    page += "\n## What must hold\n\n| | bar | measured | holds |\n|---|---|---|---|\n";
    let at = outcome.shares.iter().position(|&share| share == SHARE).unwrap_or_default();
    for top in &outcome.top {
        let (times, interval) = outcome.times(top, at);
        let title = top.method.title();
        writeln!(
            page,
            "| {title}: top 5 % over random 5 % | ≥ {TIMES}× | {} | {} |",
            cell(times, &interval),
            verdict(times >= TIMES)
        )
        .expect("a string takes any text");
        let means: Vec<f64> = top.rise.iter().map(|rise| mean(rise)).collect();
        let monotone = means.windows(2).all(|pair| pair[0] < pair[1]);
        writeln!(page, "| {title}: monotone | yes | | {} |", verdict(monotone))
            .expect("a string takes any text");
    }
    page += "\n## Rise of the query's loss\n\n| taken away | by |  rise | times random |\n|---|---|---|---|\n";
    for (k, share) in outcome.shares.iter().enumerate() {
        let percent = 100.0 * share;
        let (signed, size) = (outcome.random(k, |rise| rise), outcome.random(k, f64::abs));
        for (by, values) in [("random", &signed), ("random, by size", &size)] {
            let value = precise(values);
            writeln!(page, "| {percent} % | {by} | {value} | |").expect("a string takes any text");
        }
        for top in &outcome.top {
            let (times, interval) = outcome.times(top, k);
            let (title, value) = (top.method.title(), precise(&top.rise[k]));
            writeln!(page, "| {percent} % | {title} | {value} | {} |", cell(times, &interval))
                .expect("a string takes any text");
        }
    }
    page + &retraining::closing(outcome.measured.as_ref())
}

/// Mean and interval of small numbers.
fn precise(values: &[f64]) -> String {
    let interval = mean_interval(values);
    format!("{:.5} ({:.5} … {:.5})", mean(values), interval.start, interval.end)
}

const EXPLANATION: &str = "
For each query the training samples of highest score are taken away, the model is retrained, and the \
query's loss is compared with that of a model that kept them all, by the same seeds (BASE on average). \
\"Times random\" is the mean rise over the mean **size** of the change without as many random samples, \
whichever its sign: retraining itself moves losses, and the size counts that against the score. 95 % bootstrap intervals \
over queries. Where scores are whitened, queries that are not among these chose the damping by their LDS.
";
