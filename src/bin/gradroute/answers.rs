//! The queries, in tables and pictures.

use std::path::Path;

use gradroute::Result;
use gradroute::provenance::query::{
    Output, OutputOptions, Place, RegionRoute, SampleScore, Subject,
};
use gradroute::provenance::{Estimate, Query};
use gradroute::report::charts::{Bar, bars};
use serde_json::json;

use crate::arguments::{Grouping, OutputArguments};
use crate::integrity::opened;
use crate::shown::{Part, Shown, estimate, head, number, percent};

pub fn inspect(ledger: &Path, quiet: bool) -> Result<Shown> {
    let archive = opened(ledger, quiet)?;
    let (info, reader) = (archive.reader().info(), archive.reader());
    let citation = archive.citation();
    let mut counts = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for sample in &info.samples {
        let count = counts.entry(&sample.category).or_default();
        count.0 += 1;
        count.1 += usize::from(archive.influence().sketch(sample.id).is_some());
    }
    let blocks = info.blocks.iter().map(|block| {
        let parameters: u64 = block.layers.iter().map(|layer| layer.parameters).sum();
        vec![block.name.clone(), block.layers.len().to_string(), parameters.to_string()]
    });
    let categories = counts
        .iter()
        .map(|(name, (all, seen))| vec![(*name).to_owned(), all.to_string(), seen.to_string()]);
    let newest = reader.entries().iter().rev().find(|entry| !entry.checkpoint.is_empty());
    let entries = reader.entries().iter().map(|entry| {
        let steps = entry.steps.map_or("–".into(), |[a, b]| format!("{a} to {b}"));
        // Of those that were superseded the files are gone.
        let (checkpoint, there) = match newest {
            _ if entry.checkpoint.is_empty() => ("", &[][..]),
            Some(newest) if newest.index > entry.index => ("superseded", &[][..]),
            _ => ("kept", &entry.checkpoint[..]),
        };
        let bytes: u64 = entry.files.iter().chain(there).map(|it| it.bytes).sum();
        let hash = entry.hash[..12].to_owned();
        vec![entry.index.to_string(), steps, bytes.to_string(), checkpoint.into(), hash]
    });
    let value = json!({
        "run": info,
        "entries": reader.entries(),
        "categories": counts.iter().map(|(name, (all, seen))| {
            json!({"category": name, "samples": all, "seen": seen})
        }).collect::<Vec<_>>(),
        "regions": archive.all_regions(),
        "citation": &citation,
    });
    let shown = Shown { title: format!("Ledger {}", ledger.display()), parts: Vec::new(), value };
    Ok(shown
        .with(Part {
            title: "Blocks, from input to output".into(),
            head: head(["block", "layers", "parameters"]),
            rows: blocks.collect(),
            ..Part::default()
        })
        .with(regions("Owned regions", &archive.all_regions()))
        .with(Part {
            title: "Categories".into(),
            head: head(["category", "samples", "seen"]),
            rows: categories.collect(),
            ..Part::default()
        })
        .with(Part {
            title: "Commits".into(),
            head: head(["entry", "steps", "bytes", "checkpoint", "hash"]),
            rows: entries.collect(),
            ..Part::default()
        })
        .citing(&citation))
}

fn regions(title: &str, routes: &[RegionRoute]) -> Part {
    let rows = routes.iter().map(|it| {
        let (route, blocks) = (number(f64::from(it.route)), it.blocks.join(", "));
        vec![it.region.clone(), it.owner.clone(), route, blocks]
    });
    Part {
        title: title.into(),
        lead: if routes.is_empty() { "none".into() } else { String::new() },
        head: head(["region", "owner", "route weight", "in blocks"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

/// Bars of estimates with names.
fn picture<'a>(values: impl Iterator<Item = (&'a String, Estimate)>) -> Vec<String> {
    let bar = |(name, it): (&String, Estimate)| Bar {
        name: name.clone(),
        value: it.value,
        deviation: it.deviation,
    };
    vec![bars(&values.map(bar).collect::<Vec<_>>())]
}

pub fn forward(ledger: &Path, subject: &Subject, quiet: bool) -> Result<Shown> {
    let answer = opened(ledger, quiet)?.forward(subject)?;
    let blocks = answer.blocks.iter().map(|it| {
        let amounts = [it.pushed, it.path, it.applied, it.unrouted, it.raw, it.route];
        let mut row = vec![it.block.clone(), estimate(&it.moved), percent(it.share)];
        row.extend(amounts.map(number));
        row
    });
    let edge = |it: Option<f32>| it.map_or(String::new(), |it| it.to_string());
    let levels = answer.levels.iter().filter(|it| it.events > 0).map(|it| {
        let level = match (it.from, it.to) {
            (None, None) => "none".to_owned(),
            (from, to) => format!("{} … {}", edge(from), edge(to)),
        };
        vec![level, it.events.to_string(), it.norm.map_or("–".into(), number)]
    });
    let left_out: u64 = answer.blocks.iter().map(|it| it.not_finite).sum();
    let lead = format!(
        "{} samples, {} events, {} of them gated (mean gate {}). moved ‖ΣA‖, pushed Σ‖A‖, path \
         Σ|η|‖S‖; by exact norms: applied Σ|η·route·gate|‖G‖, unrouted Σ|η|‖G‖, raw Σ‖G‖. {} \
         norms were not finite.",
        answer.samples,
        answer.events,
        answer.gated,
        number(answer.gate),
        left_out
    );
    let moved = answer.blocks.iter().map(|it| (&it.block, it.moved));
    Ok(Shown::new(format!("What {} did", answer.subject), &answer)?
        .with(Part {
            title: "By block, from input to output".into(),
            lead,
            head: head([
                "block", "moved", "share", "pushed", "path", "applied", "unrouted", "raw", "route",
            ]),
            rows: blocks.collect(),
            pictures: picture(moved),
        })
        .with(Part {
            title: "By noise level".into(),
            head: head(["level", "events", "mean norm"]),
            rows: levels.collect(),
            ..Part::default()
        })
        .with(regions("Regions it trains, by the policy", &answer.regions))
        .citing(&answer.citation))
}

pub fn backward(ledger: &Path, place: &Place, grouping: &Grouping, quiet: bool) -> Result<Shown> {
    let answer = opened(ledger, quiet)?.backward(place, grouping.level, grouping.top)?;
    let categories = answer.categories.iter().map(|it| {
        let pushed = number(it.pushed);
        let samples = it.samples.to_string();
        vec![it.category.clone(), samples, estimate(&it.moved), percent(it.share), pushed]
    });
    let samples = answer.samples.iter().map(|it| {
        vec![it.sample.to_string(), it.category.clone(), estimate(&it.moved), number(it.applied)]
    });
    let lead = match place {
        Place::Block(_) => String::new(),
        Place::Region(_) => format!(
            "The ledger records amounts by block; these are of the blocks {}, for the categories \
             that train the region.",
            answer.blocks.join(", ")
        ),
    };
    let moved = answer.categories.iter().map(|it| (&it.category, it.moved));
    Ok(Shown::new(format!("Who moved {}", answer.place), &answer)?
        .with(Part {
            title: "Categories".into(),
            lead,
            head: head(["category", "samples", "moved ‖ΣA‖", "share", "pushed Σ‖A‖"]),
            rows: categories.collect(),
            pictures: picture(moved),
        })
        .with(Part {
            title: "Samples".into(),
            head: head(["sample", "category", "moved ‖A‖", "applied"]),
            rows: samples.collect(),
            ..Part::default()
        })
        .citing(&answer.citation))
}

pub fn output(question: &OutputArguments, quiet: bool) -> Result<Shown> {
    let archive = opened(&question.ledger, quiet)?;
    let (queries, about) = match question.query.like {
        Some(id) => (vec![archive.query_like(id)?], format!("what sample {id} did")),
        None => {
            let paths = &question.query.query;
            let names: Vec<String> = paths.iter().map(|it| it.display().to_string()).collect();
            (paths.iter().map(Query::read).collect::<Result<_>>()?, names.join(", "))
        }
    };
    let options = OutputOptions {
        whitening: (!question.plain).then_some(question.damping),
        similarity: question.score.into(),
        level: question.grouping.level,
        count: question.grouping.top,
        alike: question.alike,
    };
    let answer = match &queries[..] {
        [query] => archive.output(query, &options)?,
        phases => archive.output_by_phases(phases, &options)?,
    };
    let groups = answer.groups.iter().enumerate().map(|(at, group)| {
        let ids: Vec<String> = group.samples.iter().map(u64::to_string).collect();
        let kind = if group.copies { "copies" } else { "alike" };
        vec![format!("#{at}"), kind.into(), estimate(&group.score), ids.join(" ")]
    });
    let categories = answer.categories.iter().map(|it| {
        let shares = shares(&it.shares, &answer.blocks);
        vec![it.category.clone(), it.samples.to_string(), estimate(&it.score), shares]
    });
    let scores = answer.categories.iter().map(|it| (&it.category, it.score));
    Ok(Shown::new(format!("What stands behind {about}"), &answer)?
        .with(samples("Helped most", &answer.helpful, &answer.blocks))
        .with(samples("Worked against it", &answer.harmful, &answer.blocks))
        .with(Part {
            title: "Copies and near-duplicates, counted as one".into(),
            lead: if answer.groups.is_empty() { "none".into() } else { String::new() },
            head: head(["group", "", "score", "samples"]),
            rows: groups.collect(),
            ..Part::default()
        })
        .with(Part {
            title: "Categories".into(),
            lead: averaged(&answer),
            head: head(["category", "samples", "score", "largest shares"]),
            rows: categories.collect(),
            pictures: picture(scores),
        })
        .citing(&answer.citation))
}

fn averaged(answer: &Output) -> String {
    let draws = format!("Averaged over {} draws of noise", answer.draws.len());
    match answer.phases {
        1 => format!("{draws}."),
        phases => format!("{draws}; the run in {phases} phases, each held to its own size."),
    }
}

fn samples(title: &str, scores: &[SampleScore], blocks: &[String]) -> Part {
    let rows = scores.iter().map(|it| {
        let group = it.group.map_or(String::new(), |at| format!("#{at}"));
        let (score, shares) = (estimate(&it.score), shares(&it.shares, blocks));
        vec![it.sample.to_string(), it.category.clone(), score, group, shares]
    });
    Part {
        title: title.into(),
        lead: if scores.is_empty() { "none".into() } else { String::new() },
        head: head(["sample", "category", "score", "group", "largest shares"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

/// The three blocks of largest part.
pub fn shares(shares: &[f64], blocks: &[String]) -> String {
    let mut all: Vec<(&f64, &String)> = shares.iter().zip(blocks).collect();
    all.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    let few = all.iter().take(3).map(|(share, block)| format!("{block} {}", percent(**share)));
    few.collect::<Vec<_>>().join(", ")
}

pub fn depth(ledger: &Path, subject: &Subject, level: Option<usize>, quiet: bool) -> Result<Shown> {
    let answer = opened(ledger, quiet)?.depth(subject, level)?;
    let share = |it: &Estimate| format!("{:.1} ± {:.1} %", 100.0 * it.value, 100.0 * it.deviation);
    let blocks = answer
        .blocks
        .iter()
        .map(|it| vec![it.block.clone(), share(&it.share), percent(it.corpus), number(it.lift)]);
    let last = answer.blocks.len().saturating_sub(1);
    let lead = format!(
        "Centroid {} of 0 … {last} (0 is the input's end), spread {}; the corpus: {}, spread {}.",
        estimate(&answer.profile.centroid),
        number(answer.profile.spread),
        estimate(&answer.corpus.centroid),
        number(answer.corpus.spread)
    );
    let profile = answer.blocks.iter().map(|it| (&it.block, it.share));
    Ok(Shown::new(format!("How deep {} went", answer.subject), &answer)?
        .with(Part {
            title: "Profile over the blocks".into(),
            lead,
            head: head(["block", "share", "corpus", "lift"]),
            rows: blocks.collect(),
            pictures: picture(profile),
        })
        .citing(&answer.citation))
}

pub fn overlap(ledger: &Path, category: &str, level: Option<usize>, quiet: bool) -> Result<Shown> {
    let answer = opened(ledger, quiet)?.overlap(&category.parse()?, level)?;
    let rows = answer.others.iter().map(|it| {
        let loses = format!("{:.1} ± {:.1} %", 100.0 * it.loses.value, 100.0 * it.loses.deviation);
        vec![it.category.clone(), it.samples.to_string(), estimate(&it.cosine), loses]
    });
    let cosines = answer.others.iter().map(|it| (&it.category, it.cosine));
    Ok(Shown::new(format!("What {} shares directions with", answer.category), &answer)?
        .with(Part {
            title: "Other categories".into(),
            lead: "loses: the part of its own movement that the other would lose, to first \
                   order, if the category's were taken back. A prediction, no measurement."
                .into(),
            head: head(["category", "samples", "cosine", "loses"]),
            rows: rows.collect(),
            pictures: picture(cosines),
        })
        .citing(&answer.citation))
}

pub fn alone(ledger: &Path, level: Option<usize>, damping: f64, quiet: bool) -> Result<Shown> {
    let answer = opened(ledger, quiet)?.alone(level, damping)?;
    let rows = answer.categories.iter().map(|it| {
        let shares = shares(&it.shares, &answer.blocks);
        vec![it.category.clone(), it.samples.to_string(), estimate(&it.alone), shares]
    });
    let amounts = answer.categories.iter().map(|it| (&it.category, it.alone));
    Ok(Shown::new("What each category moved that nobody else did", &answer)?
        .with(Part {
            title: "Categories".into(),
            lead: "alone: the category's movement, compared with itself after the directions of \
                   everybody else's are divided out. No unit; it orders the categories."
                .into(),
            head: head(["category", "samples", "alone", "largest shares"]),
            rows: rows.collect(),
            pictures: picture(amounts),
        })
        .citing(&answer.citation))
}
