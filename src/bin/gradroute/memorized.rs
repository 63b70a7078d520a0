//! Signs of memorization: the guard's, where the run was guarded, and those of every ledger.

use std::collections::{BTreeMap, HashMap};

use gradroute::Result;
use gradroute::guard::{GateEvent, Gated, Guard, GuardConfig, Level, Score};
use gradroute::provenance::query::{Archive, SampleSignals, Signals};
use gradroute::report::charts::{Bar, bars};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::arguments::MemorizedArguments;
use crate::integrity::opened;
use crate::shown::{Part, Shown, head, number, percent};

/// The answer for programs.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    signals: &'a Signals,
    /// None where the run was not guarded.
    guard: Option<&'a Watched>,
}

/// What the guard knew at the ledger's end.
#[derive(Serialize)]
struct Watched {
    config: GuardConfig,
    /// Samples it knows.
    samples: usize,
    /// Those of highest score.
    scores: Vec<Score>,
    /// Clusters of more than one sample, the largest first.
    clusters: Vec<Cluster>,
    /// Clusters whose gates were closed, most often first.
    gated: Vec<GatedWhen>,
}

/// Near-duplicates.
#[derive(Serialize)]
struct Cluster {
    /// The sample it is named after.
    cluster: u64,
    members: Vec<u64>,
    categories: Vec<String>,
    /// The highest score of them.
    total: f64,
    /// In multiples of the mean cluster's.
    exposure: f64,
    /// Times a gate of theirs was closed.
    closed: u64,
}

#[derive(Serialize)]
struct GatedWhen {
    #[serde(flatten)]
    gated: Gated,
    /// First and last step with a closed gate.
    steps: [u64; 2],
}

pub fn memorized(question: &MemorizedArguments, quiet: bool) -> Result<Shown> {
    let archive = opened(&question.ledger, quiet)?;
    let watched = watched(&archive, question.top, quiet)?;
    let signals = archive.signals(question.top, question.alike, question.search)?;
    let answer = Answer { signals: &signals, guard: watched.as_ref() };
    let mut shown = Shown::new("Signs of memorization", &answer)?;
    shown = match &watched {
        Some(it) => {
            shown.with(scores(it, &archive)).with(clusters(it, question.top)).with(gates(it))
        }
        None => shown.with(Part {
            title: "Guard".into(),
            lead: "The run was not guarded, so there are no scores, clusters by fingerprint or \
                   gates."
                .into(),
            ..Part::default()
        }),
    };
    Ok(shown.with(signs(&signals)).citing(&signals.citation))
}

/// Rebuilds the guard from the ledger.
fn watched(archive: &Archive, top: usize, quiet: bool) -> Result<Option<Watched>> {
    let reader = archive.reader();
    let Some(mut guard) = Guard::of_run(reader.info())? else { return Ok(None) };
    let segments = reader.entries().iter().filter(|entry| entry.steps.is_some()).count();
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(segments as u64) };
    let style = ProgressStyle::with_template("{bar:32} segment {pos}/{len} replayed · {eta} left");
    bar.set_style(style.expect("a valid template"));
    for events in bar.wrap_iter(reader.events()) {
        guard.replay(&events?)?;
    }
    let mut scores = guard.scores();
    scores.sort_by(|a, b| b.total.total_cmp(&a.total).then(a.sample.cmp(&b.sample)));
    let events = guard.take_events();
    let clusters = clustered(archive, &scores, &events)?;
    scores.truncate(top);
    let gated = guard.report().gated;
    Ok(Some(Watched {
        config: guard.config().clone(),
        samples: guard.len(),
        scores,
        clusters,
        gated: when(gated, &events),
    }))
}

fn clustered(archive: &Archive, scores: &[Score], events: &[GateEvent]) -> Result<Vec<Cluster>> {
    let mut closed: HashMap<u64, u64> = HashMap::new();
    events.iter().for_each(|event| *closed.entry(event.sample).or_default() += 1);
    let mut members: BTreeMap<u64, Vec<&Score>> = BTreeMap::new();
    scores.iter().for_each(|score| members.entry(score.cluster).or_default().push(score));
    let mut clusters = Vec::new();
    for (cluster, of) in members.into_iter().filter(|(_, of)| of.len() > 1) {
        let mut ids: Vec<u64> = of.iter().map(|score| score.sample).collect();
        ids.sort_unstable();
        let names = ids.iter().map(|&id| Ok(archive.sample(id)?.category.clone()));
        let mut categories = names.collect::<Result<Vec<String>>>()?;
        categories.sort_unstable();
        categories.dedup();
        clusters.push(Cluster {
            cluster,
            closed: ids.iter().filter_map(|id| closed.get(id)).sum(),
            members: ids,
            categories,
            // Highest first.
            total: of[0].total,
            exposure: of[0].cluster_exposure,
        });
    }
    clusters.sort_by(|a, b| b.members.len().cmp(&a.members.len()).then(a.cluster.cmp(&b.cluster)));
    Ok(clusters)
}

fn when(gated: Vec<Gated>, events: &[GateEvent]) -> Vec<GatedWhen> {
    let mut steps: HashMap<u64, [u64; 2]> = HashMap::new();
    for event in events {
        let [first, last] = steps.entry(event.sample).or_insert([event.step; 2]);
        (*first, *last) = ((*first).min(event.step), (*last).max(event.step));
    }
    let span = |members: &[u64]| {
        let all = members.iter().filter_map(|id| steps.get(id).copied());
        all.reduce(|[a, b], [c, d]| [a.min(c), b.max(d)]).unwrap_or_default()
    };
    let gated = gated.into_iter().map(|gated| GatedWhen { steps: span(&gated.members), gated });
    gated.collect()
}

fn scores(watched: &Watched, archive: &Archive) -> Part {
    let category = |id| archive.sample(id).map_or_else(|_| String::new(), |it| it.category.clone());
    let rows = watched.scores.iter().map(|it| {
        let mut row = vec![it.sample.to_string(), category(it.sample), number(it.total)];
        row.extend([it.density, it.deviation, it.exposure, it.concentration].map(number));
        row.push(it.cluster.to_string());
        row
    });
    let bar = watched.scores.iter().map(|it| Bar {
        name: it.sample.to_string(),
        value: it.total,
        deviation: 0.0,
    });
    Part {
        title: "Highest scores of the guard".into(),
        lead: format!(
            "Of {} samples. Candidates, no verdict. density: near-duplicates expected. deviation: \
             of the log norm from others' at the same noise level and time, in standard \
             deviations. exposure: Σ η·|route·gate|·‖G‖ over the mean sample's. concentration: \
             0 over all blocks alike, 1 in one block.",
            watched.samples
        ),
        head: head([
            "sample",
            "category",
            "score",
            "density",
            "deviation",
            "exposure",
            "concentration",
            "cluster",
        ]),
        rows: rows.collect(),
        pictures: vec![bars(&bar.collect::<Vec<_>>())],
    }
}

fn clusters(watched: &Watched, top: usize) -> Part {
    let rows = watched.clusters.iter().take(top).map(|it| {
        let numbers = [number(it.total), number(it.exposure), it.closed.to_string()];
        let mut row = vec![it.cluster.to_string(), it.members.len().to_string()];
        row.extend(numbers);
        row.extend([it.categories.join(", "), few(&it.members)]);
        row
    });
    let more = watched.clusters.len().saturating_sub(top);
    Part {
        title: "Near-duplicates, each group as one".into(),
        lead: match (watched.clusters.len(), more) {
            (0, _) => "none".into(),
            (_, 0) => "exposure: over the mean cluster's.".into(),
            (_, more) => format!("exposure: over the mean cluster's. {more} more: --top."),
        },
        head: head(["cluster", "samples", "score", "exposure", "closings", "category", "members"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

fn gates(watched: &Watched) -> Part {
    let rows = watched.gated.iter().map(|GatedWhen { gated, steps: [first, last] }| {
        let whose = match gated.level {
            Level::Sample => "the sample's",
            Level::Cluster => "the cluster's",
            Level::Category => "the category's",
        };
        vec![
            few(&gated.members),
            gated.times.to_string(),
            format!("{first} to {last}"),
            number(f64::from(gated.lowest)),
            percent(gated.withheld),
            format!("{whose} exposure, {} times the mean", number(gated.ratio)),
        ]
    });
    Part {
        title: "Gates that were closed".into(),
        lead: match watched.gated.len() {
            0 => "none".into(),
            _ => "Step by step, they are the events with a gate below 1: `gradroute export … \
                  events`. why: as it stood when a gate last closed."
                .into(),
        },
        head: head(["samples", "times", "steps", "lowest", "withheld", "why"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

/// What every ledger holds.
fn signs(signals: &Signals) -> Part {
    let row = |it: &SampleSignals| {
        let counts = [it.events, it.copies as u64, it.alike as u64].map(|it| it.to_string());
        let mut row = vec![it.sample.to_string(), it.category.clone()];
        row.extend(counts);
        row.extend([it.loudness, it.exposure].map(number));
        row
    };
    let lead = match signals.searched {
        true => {
            "Candidates, no verdict: loudness is the mean logarithm of the gradient norm over \
             the median sample's at the same noise level; alike, those that did nearly the same \
             to the model."
        }
        false => "There are more samples than --search allows: copies by content hash only.",
    };
    Part {
        title: "Most conspicuous by the record".into(),
        lead: lead.into(),
        head: head(["sample", "category", "events", "copies", "alike", "loudness", "exposure"]),
        rows: signals.samples.iter().map(row).collect(),
        ..Part::default()
    }
}

/// Ids, as many as a line holds.
fn few(ids: &[u64]) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> = ids.iter().take(MOST).map(u64::to_string).collect();
    let more = ids.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(" "))
}
