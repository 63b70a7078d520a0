//! `cargo xtask evaluate categories`: does a category's share of the record say what training
//! without it does?

use std::fmt::Write;
use std::ops::Range;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::amount::Halves;
use super::chart;
use super::retraining::{self, Arguments, Method, Setup, Task, cell, chose, verdict};
use super::stamp::Stamp;
use super::statistics::{bootstrap, mean, spearman};

const BAR: f64 = 0.8;
/// The scores the bar is about; the first is pictured, and with the second needs the record by phases.
const SCORES: [(&str, &str); 5] = [
    ("two-sided k=16", "whitened, by phases"),
    ("count sketch 256", "whitened, by phases"),
    ("two-sided k=16", "moved alone"),
    ("count sketch 256", "moved alone"),
    ("count sketch 256", "whitened"),
];

#[derive(Deserialize)]
struct Outcome {
    setup: Setup,
    halves: Option<Halves>,
    seeds: u64,
    /// Every so many queries one chose the damping.
    #[serde(default = "every_fourth")]
    validation: usize,
    measured: Option<Stamp>,
    names: Vec<String>,
    sizes: Vec<usize>,
    /// Category of each query.
    queries: Vec<usize>,
    /// `[seeds][categories][queries]`.
    rise: Vec<Vec<Vec<f64>>>,
    shares: Vec<Shares>,
}

/// As it was before outcomes said so.
fn every_fourth() -> usize {
    4
}

#[derive(Deserialize)]
struct Shares {
    method: Method,
    /// `[categories][queries]`, or `[categories][1]` where no query is asked.
    share: Vec<Vec<f64>>,
}

impl Shares {
    fn asks_none(&self) -> bool {
        self.share.iter().all(|row| row.len() == 1)
    }

    /// Whose queries it can be judged on: what asks none speaks of the category itself.
    fn judged_on(&self) -> &'static [Asked] {
        if self.asks_none() { &[Asked::Own] } else { &Asked::EACH }
    }
}

/// Whose queries a category's effect is measured on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Own,
    All,
    /// Every other category's, one by one.
    Pairs,
}

impl Asked {
    const EACH: [Self; 3] = [Self::Own, Self::All, Self::Pairs];

    fn name(self) -> &'static str {
        match self {
            Self::Own => "its own queries",
            Self::All => "all queries",
            Self::Pairs => "each category's queries",
        }
    }
}

impl Outcome {
    /// Without the queries that chose the damping: the others judge.
    fn judging(mut self) -> Result<Self> {
        let judges: Vec<usize> =
            (0..self.queries.len()).filter(|&query| !chose(query, self.validation)).collect();
        self.queries = judges.iter().map(|&query| self.queries[query]).collect();
        let keep = |row: &mut Vec<f64>| *row = judges.iter().map(|&query| row[query]).collect();
        self.rise.iter_mut().flatten().for_each(keep);
        let shares = self.shares.iter_mut().filter(|shares| !shares.asks_none());
        shares.flat_map(|shares| &mut shares.share).for_each(keep);
        for (category, name) in self.names.iter().enumerate() {
            ensure!(
                self.queries.contains(&category),
                "{name}: all of its queries chose the damping"
            );
        }
        Ok(self)
    }

    /// Mean over a category's queries of a row over all queries, or of the row's only number.
    fn on(&self, row: &[f64], category: usize) -> f64 {
        if let [only] = row {
            return *only;
        }
        let own = self.queries.iter().zip(row).filter(|(of, _)| **of == category);
        mean(&own.map(|(_, value)| *value).collect::<Vec<_>>())
    }

    /// For each category what its row says, one number or one for each asked.
    fn values(&self, table: &[Vec<f64>], asked: Asked) -> Vec<Vec<f64>> {
        let categories = 0..self.names.len();
        (table.iter().enumerate())
            .map(|(category, row)| match asked {
                Asked::Own => vec![self.on(row, category)],
                Asked::All => vec![mean(row)],
                Asked::Pairs => categories.clone().map(|other| self.on(row, other)).collect(),
            })
            .collect()
    }

    /// Rise of each query's loss, averaged over the seeds.
    fn rise(&self) -> Vec<Vec<f64>> {
        let cell =
            |c: usize, q: usize| mean(&self.rise.iter().map(|s| s[c][q]).collect::<Vec<_>>());
        let queries = 0..self.queries.len();
        (0..self.names.len()).map(|c| queries.clone().map(|q| cell(c, q)).collect()).collect()
    }

    fn judge(&self, shares: &[Vec<f64>], rise: &[Vec<f64>], asked: Asked) -> (f64, Range<f64>) {
        let (a, b) = (self.values(shares, asked), self.values(rise, asked));
        let of = |drawn: &[usize]| {
            let pick = |table: &[Vec<f64>]| drawn.iter().flat_map(|&c| table[c].clone()).collect();
            let (a, b): (Vec<f64>, Vec<f64>) = (pick(&a), pick(&b));
            spearman(&a, &b)
        };
        let all: Vec<usize> = (0..self.names.len()).collect();
        (of(&all), bootstrap(all.len(), of))
    }
}

/// Measures and records.
pub fn run(arguments: &Arguments) -> Result<()> {
    let outcome: Outcome = retraining::measured(arguments, "categories")?;
    let outcome = outcome.judging()?;
    let name = format!("categories-{}", arguments.task.name());
    let picture = retraining::record(&name, &page(&outcome, arguments.task)?)?;
    let shares = judged(&outcome)?[0];
    let share = outcome.values(&shares.share, Asked::Own).concat();
    let rise = outcome.values(&outcome.rise(), Asked::Own).concat();
    let points: Vec<_> = share.into_iter().zip(rise).zip(&outcome.names).collect();
    let axes =
        ["share of the record in its own queries", "rise of their loss without the category"];
    chart::scatter(&picture, axes, &points)
}

/// What the bar is about, at least one.
fn judged(outcome: &Outcome) -> Result<Vec<&Shares>> {
    let found = SCORES.iter().filter_map(|score| {
        let same = |it: &&Shares| (&*it.method.storage, &*it.method.name) == *score;
        outcome.shares.iter().find(same)
    });
    let found: Vec<&Shares> = found.collect();
    ensure!(!found.is_empty(), "no score of the bar was measured");
    Ok(found)
}

fn page(outcome: &Outcome, task: Task) -> Result<String> {
    let mut page = format!(
        "# Category removal, {name}\n\n`{}`: {} categories, each taken away whole and the model \
         retrained, {} seed{}.\n\n![share and effect](categories-{name}.svg)\n\n",
        retraining::command("categories", task, outcome.halves, Some(outcome.seeds)),
        outcome.names.len(),
        outcome.seeds,
        if outcome.seeds == 1 { "" } else { "s" },
        name = task.name(),
    );
    page += &outcome.setup.paragraph();
    page += EXPLANATION;
    page += "\n## What must hold\n\n| | bar | measured | holds |\n|---|---|---|---|\n";
    let (judged, rise) = (judged(outcome)?, outcome.rise());
    for shares in &judged {
        for &asked in shares.judged_on() {
            let (value, interval) = outcome.judge(&shares.share, &rise, asked);
            writeln!(
                page,
                "| {}, on {} | ≥ {BAR} | {} | {} |",
                shares.method.title(),
                asked.name(),
                cell(value, &interval),
                verdict(value >= BAR)
            )?;
        }
    }
    page += "\n## All scores\n\n| storage | score | damping | its own | all | each |\n|---|---|---|---|---|---|\n";
    for shares in &outcome.shares {
        let Method { storage, name, .. } = &shares.method;
        write!(page, "| {storage} | {name} | {} |", shares.method.damping())?;
        for asked in Asked::EACH {
            if !shares.judged_on().contains(&asked) {
                page += " – |";
                continue;
            }
            let (value, interval) = outcome.judge(&shares.share, &rise, asked);
            write!(page, " {} |", cell(value, &interval))?;
        }
        page.push('\n');
    }
    page += "\n## By category\n\n| category | samples |";
    let title = |shares: &&Shares| format!(" {}, own |", shares.method.title());
    page.extend(judged.iter().map(title));
    page += " rise, own | rise, all |\n|---|---:|";
    page += &"---:|".repeat(judged.len() + 2);
    page.push('\n');
    let tables = judged.iter().map(|it| (&it.share, Asked::Own));
    let tables = tables.chain([(&rise, Asked::Own), (&rise, Asked::All)]);
    let columns: Vec<Vec<f64>> = tables.map(|(it, on)| outcome.values(it, on).concat()).collect();
    for (c, category) in outcome.names.iter().enumerate() {
        write!(page, "| {category} | {} |", outcome.sizes[c])?;
        let (shares, rises) = columns.split_at(judged.len());
        shares.iter().try_for_each(|it| write!(page, " {:.4} |", it[c]))?;
        rises.iter().try_for_each(|it| write!(page, " {:.5} |", it[c]))?;
        page.push('\n');
    }
    if outcome.seeds > 1 {
        page += &agreement(outcome)?;
    }
    Ok(page + &retraining::closing(outcome.measured.as_ref()))
}

/// How far the effects are those of the seeds that were drawn: Spearman between the means of two halves of them, of
/// an odd number without the last, and what follows for the mean of all by Spearman and Brown.
fn agreement(outcome: &Outcome) -> Result<String> {
    let mut page = String::from(AGREEMENT);
    let half = outcome.rise.len() / 2;
    let (one, other) = (&outcome.rise[..half], &outcome.rise[half..2 * half]);
    for asked in Asked::EACH {
        let side = |seeds: &[Vec<Vec<f64>>]| -> Vec<f64> {
            let tables: Vec<_> = seeds.iter().map(|s| outcome.values(s, asked).concat()).collect();
            (0..tables[0].len())
                .map(|k| mean(&tables.iter().map(|t| t[k]).collect::<Vec<_>>()))
                .collect()
        };
        let halves = spearman(&side(one), &side(other));
        let all = spearman_brown(halves.max(0.0), outcome.rise.len() as f64 / half as f64);
        writeln!(page, "| {} | {halves:.2} | {all:.2} | {:.2} |", asked.name(), all.sqrt())?;
    }
    Ok(page)
}

/// Reliability of a mean over `times` as many seeds as one of `reliability` has.
fn spearman_brown(reliability: f64, times: f64) -> f64 {
    times * reliability / (1.0 + (times - 1.0) * reliability)
}

const AGREEMENT: &str = "
## How sure the effects are

Spearman's correlation between the effects by one half of the seeds and by the other, of an odd number without the
last; what follows for the mean of all of them (Spearman and Brown, 1910); and its root, above which no share can be
expected to correlate with that mean.

| effect on | halves | all | most to expect |
|---|---:|---:|---:|
";

const EXPLANATION: &str = "
A category's share is the sum of its samples' scores; its effect is how much the loss rises, \
on average over the seeds, when the model is trained without it. Spearman's correlation over the categories (on \"each \
category's queries\" over all pairs of a category taken away and a category asked), 95 % bootstrap \
interval over the categories. Where scores are whitened, every fourth query chose the damping by its LDS; the others \
judge all scores. \"Whitened by the \
rest\" is whitened by the samples of the other categories alone; \"moved alone\" asks no query: it compares the sum of the \
category's record with itself, whitened so.
";

#[cfg(test)]
mod tests {
    use super::*;

    /// Two categories, queries 0 and 4 of which chose; what an outcome says beside that, and its rise.
    fn outcome(fields: &str, rise: &str) -> Outcome {
        let setup =
            r#"{"model": "", "training": "", "samples": 2, "queries": 6, "retraining": ""}"#;
        let method = r#"{"storage": "", "name": "", "damping": null, "extra_pass": false}"#;
        let shares = format!(
            r#"[{{"method": {method}, "share": [[9, 1, 2, 3, 9, 5], [9, 0, 0, 0, 9, 0]]}},
                {{"method": {method}, "share": [[7], [8]]}}]"#
        );
        let text = format!(
            r#"{{"setup": {setup}, {fields} "names": ["a", "b"], "sizes": [1, 1],
                "queries": [0, 0, 1, 0, 1, 1], "rise": {rise}, "shares": {shares}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn queries_that_chose_the_damping_do_not_judge() {
        let rise = "[[[9, 1, 2, 3, 9, 5], [9, 4, 4, 4, 9, 4]]]";
        let judging = outcome(r#""seeds": 1,"#, rise).judging().unwrap();
        assert_eq!(judging.queries, [0, 1, 0, 1]);
        assert_eq!(judging.rise, [[[1.0, 2.0, 3.0, 5.0], [4.0; 4]]]);
        assert_eq!(judging.shares[0].share, [[1.0, 2.0, 3.0, 5.0], [0.0; 4]]);
        assert_eq!(judging.shares[1].share, [[7.0], [8.0]]);
        assert_eq!(judging.values(&judging.rise(), Asked::Own), [[2.0], [4.0]]);
        // Every second by the outcome's own word: 1, 3 and 5 judge.
        let every_second = outcome(r#""seeds": 1, "validation": 2,"#, rise).judging().unwrap();
        assert_eq!(every_second.rise[0][0], [1.0, 3.0, 5.0]);
        // Everybody's: nobody judges.
        assert!(outcome(r#""seeds": 1, "validation": 1,"#, rise).judging().is_err());
    }

    #[test]
    fn an_odd_seed_takes_no_side() {
        let (seed, last) = (
            "[[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]]",
            "[[5, 5, 5, 5, 5, 5], [2, 2, 2, 2, 2, 2]]",
        );
        let page = |rise: &str| agreement(&outcome(r#""seeds": 3,"#, rise)).unwrap();
        let (odd, even) =
            (page(&format!("[{seed}, {seed}, {last}]")), page(&format!("[{seed}, {seed}]")));
        assert_eq!(odd, even);
        assert!(odd.contains("| 1.00 | 1.00 | 1.00 |"), "{odd}");
    }

    #[test]
    fn reliability_grows_as_spearman_and_brown_have_it() {
        assert_eq!(spearman_brown(0.5, 2.0), 2.0 / 3.0);
        assert_eq!(spearman_brown(0.5, 3.0), 0.75);
        assert_eq!(spearman_brown(0.0, 2.0), 0.0);
    }
}
