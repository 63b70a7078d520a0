//! What an attenuation would do or did, in tables and pictures.

use gradroute::Result;
use gradroute::provenance::Change;
use gradroute::provenance::query::Overlap;
use gradroute::report::charts::{Bar, bars};

use crate::attenuate::{Answer, Prediction};
use crate::dials::DialArgument;
use crate::shown::{Part, Shown, estimate, head, number, percent};

pub fn shown(answer: &Answer, top: usize) -> Result<Shown> {
    let dials: Vec<String> = answer.dials.iter().map(DialArgument::to_string).collect();
    let verb = if answer.attenuated.file.is_some() { "Turned" } else { "Turning" };
    let mut shown = Shown::new(format!("{verb} {}", dials.join(", ")), answer)?
        .with(files(answer))
        .with(weights(&answer.predicted, answer.citation.is_some()))
        .with(regions(&answer.predicted));
    for overlap in &answer.predicted.overlap {
        shown = shown.with(collateral(overlap, top));
    }
    shown = shown.with(measured(answer));
    Ok(match &answer.citation {
        Some(citation) => shown.citing(citation),
        None => shown,
    })
}

fn files(answer: &Answer) -> Part {
    let known = match (answer.ledger_entry, &answer.citation) {
        (Some(entry), _) => format!("saved with the ledger's entry {entry}"),
        (None, Some(_)) => "none that the ledger holds: it may be another run's".into(),
        (None, None) => "no ledger was given".into(),
    };
    let name = |file: Option<&std::path::Path>| match file {
        Some(path) => path.display().to_string(),
        None => "not written".into(),
    };
    let (before, after) = (&answer.checkpoint, &answer.attenuated);
    let facts = [
        ("checkpoint", name(before.file)),
        ("its BLAKE3", before.blake3.clone()),
        ("is", known),
        ("attenuated", name(after.file)),
        ("its BLAKE3", after.blake3.clone()),
        ("policy", answer.policy_hash.clone()),
    ];
    let rows = facts.map(|(name, fact)| vec![name.into(), fact]).into();
    let lead = match &answer.earlier[..] {
        [] => String::new(),
        earlier => format!(
            "Attenuated before, and the factors multiply: {}. Start from the checkpoint as it was \
             trained where that is not meant.",
            earlier.join("; ")
        ),
    };
    Part { title: "Checkpoints".into(), lead, rows, ..Part::default() }
}

fn weights(predicted: &Prediction, ledger: bool) -> Part {
    let rows = predicted
        .blocks
        .iter()
        .map(|it| vec![it.name.clone(), it.touched.to_string(), percent(it.relative_change)]);
    let lead = match (predicted.reached, ledger) {
        _ if predicted.blocks.is_empty() => "Nothing: every dial is at 1.".into(),
        (Some(share), _) => format!(
            "Of all that the regions' owners moved, by the sketches, {} lies in these blocks.",
            percent(share)
        ),
        (None, true) => "The ledger saw nothing of the regions' owners.".into(),
        (None, false) => "How much of the owners' work lies here, only a ledger says.".into(),
    };
    let bar = predicted.blocks.iter().map(|it| Bar {
        name: it.name.clone(),
        value: it.relative_change,
        deviation: 0.0,
    });
    Part {
        title: "Weights that change".into(),
        lead,
        head: head(["block", "numbers", "‖ΔW‖ / ‖W‖"]),
        rows: rows.collect(),
        pictures: vec![bars(&bar.collect::<Vec<_>>())],
    }
}

fn regions(predicted: &Prediction) -> Part {
    let rows = predicted.regions.iter().map(|it| {
        let contained = if it.contained { "yes" } else { "no" };
        let off = percent(it.public_off.into());
        vec![it.name.clone(), it.owner.to_string(), contained.into(), off]
    });
    Part {
        title: "Regions".into(),
        lead: "contained: their owners trained nothing else; where they did, what they taught \
               there stays. off for others: how often others trained without the region; at 100 % \
               they never saw it, and its dial cannot reach them."
            .into(),
        head: head(["region", "owner", "contained", "off for others"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

fn collateral(overlap: &Overlap, top: usize) -> Part {
    let rows = overlap.others.iter().take(top).map(|it| {
        let loses = format!("{:.1} ± {:.1} %", 100.0 * it.loses.value, 100.0 * it.loses.deviation);
        vec![it.category.clone(), estimate(&it.cosine), loses]
    });
    let more = overlap.others.len().saturating_sub(top);
    let more = if more > 0 { format!(" {more} more: --top.") } else { String::new() };
    Part {
        title: format!("Predicted collateral of {}", overlap.category),
        lead: format!(
            "loses: the part of its own movement in all weights that the other would lose, to \
             first order, if all of the category's were taken back; regions that others never saw \
             keep it from them. A prediction, no measurement.{more}"
        ),
        head: head(["category", "cosine", "loses"]),
        rows: rows.collect(),
        ..Part::default()
    }
}

fn measured(answer: &Answer) -> Part {
    let title = "Measured".to_owned();
    let Some(measured) = &answer.measured else {
        let lead = "Nothing. What the dial does to the model's losses is known once they are \
                    taken on both checkpoints: --losses.";
        return Part { title, lead: lead.into(), ..Part::default() };
    };
    let sides = [("to forget", measured.forget()), ("to retain", measured.retain())];
    let rows = sides.iter().map(|(side, it)| {
        let rise = format!("{} ± {}", number(it.rise()), number(it.standard_error));
        let counts = [number(it.before), number(it.after), rise, it.count.to_string()];
        std::iter::once((*side).to_owned()).chain(counts).collect()
    });
    let bar = sides.iter().map(|(side, it)| Bar {
        name: format!("rise of the loss {side}"),
        value: it.rise(),
        deviation: it.standard_error,
    });
    let lead = sides.iter().map(|(side, it)| verdict(side, it)).collect::<Vec<_>>().join(" ");
    Part {
        title,
        lead: format!("{lead} By the losses that were given, and of nothing else."),
        head: head(["questions", "before", "after", "rise", "pairs"]),
        rows: rows.collect(),
        pictures: vec![bars(&bar.collect::<Vec<_>>())],
    }
}

/// A change as a share of what was there, or as it is where that is no positive number.
fn relative(change: f64, before: f64) -> String {
    if before > 0.0 { percent(change / before) } else { number(change) }
}

/// No more than two standard errors allow to say.
fn verdict(side: &str, it: &Change) -> String {
    let (rise, error) = (it.rise(), it.standard_error);
    match () {
        () if rise.abs() <= 2.0 * error => {
            format!("The loss {side}: no change that these losses can tell from none.")
        }
        () if rise > 0.0 => format!("The loss {side} rose by {}.", relative(rise, it.before)),
        () => format!("The loss {side} fell by {}.", relative(-rise, it.before)),
    }
}
