//! An index of a ledger: building one and asking it.

use gradroute::Result;
use gradroute::provenance::Query;
use gradroute::provenance::index::{Index, Precision, Ranked, TopOptions};
use serde_json::json;

use crate::answers::shares;
use crate::arguments::{IndexArguments, TopArguments};
use crate::integrity::checked;
use crate::progress::{bar, told};
use crate::shown::{Part, Shown, head, number};

pub fn index(question: &IndexArguments, quiet: bool) -> Result<Shown> {
    let reader = checked(&question.ledger, quiet)?;
    let precision = if question.int8 { Precision::Int8 } else { Precision::F16 };
    let bar = bar(quiet, "segments and blocks");
    let built = Index::build(&reader, &question.out, precision, told(&bar))?;
    bar.finish_and_clear();
    let value = json!({
        "samples": built.samples(),
        "blocks": built.blocks(),
        "sketch_len": built.sketch_len(),
        "precision": precision,
        "bytes": built.bytes(),
        "citation": built.citation(),
    });
    let shown = Shown { title: format!("Index {}", question.out.display()), parts: vec![], value };
    let facts = [
        ("samples", built.samples().to_string()),
        ("blocks", built.blocks().len().to_string()),
        ("numbers per sketch", built.sketch_len().to_string()),
        ("bytes", built.bytes().to_string()),
    ];
    let rows = facts.map(|(name, fact)| vec![name.to_owned(), fact]).into();
    let part = Part { title: "Built".into(), rows, ..Part::default() };
    Ok(shown.with(part).citing(built.citation()))
}

pub fn top(question: &TopArguments, quiet: bool) -> Result<Shown> {
    let index = Index::open(&question.index)?;
    if question.check {
        let bar = bar(quiet, "files checked");
        index.verify(told(&bar))?;
        bar.finish_and_clear();
    }
    let query = Query::read(&question.query)?;
    let block = question.block.as_ref().map(|name| {
        let place = index.blocks().iter().position(|block| block == name);
        place.ok_or_else(|| gradroute::Error::Argument {
            argument: "block".into(),
            expected: format!("one of {}", index.blocks().join(", ")),
            given: name.clone(),
        })
    });
    let options = TopOptions {
        whitening: (!question.plain).then_some(question.damping),
        similarity: question.score.into(),
        block: block.transpose()?,
        count: question.top,
        shares: question.shares,
    };
    let bar = bar(quiet, "blocks");
    let answer = index.top(&query.mean(), &options, told(&bar))?;
    bar.finish_and_clear();
    let place = question.block.as_ref().map_or(String::new(), |block| format!(", in {block}"));
    let title = format!("What stands behind {}{place}", question.query.display());
    let blocks = question.shares.then_some(&*answer.blocks);
    Ok(Shown::new(title, &answer)?
        .with(part("Helped most", &answer.helpful, blocks))
        .with(part("Worked against it", &answer.harmful, blocks))
        .citing(&answer.citation))
}

/// Samples and scores, and where these come from, of blocks with these names, if that was asked for.
fn part(title: &str, ranked: &[Ranked], blocks: Option<&[String]>) -> Part {
    let row = |it: &Ranked| {
        let place = blocks.map(|blocks| shares(&it.shares, blocks));
        [it.sample.to_string(), number(it.score)].into_iter().chain(place).collect()
    };
    let mut names = head(["sample", "score", "mostly in"]);
    names.truncate(if blocks.is_some() { 3 } else { 2 });
    Part {
        title: title.into(),
        lead: if ranked.is_empty() { "none".into() } else { String::new() },
        head: names,
        rows: ranked.iter().map(row).collect(),
        ..Part::default()
    }
}
