//! Who moved what: categories over blocks, training glyphs behind a drawn one, planted copies.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use gradroute::provenance::{Influence, Similarity, Whitening};
use gradroute::report::charts::HeatMap;
use gradroute::report::html::{escape, section, table};

use super::Report;
use super::faces::{Faces, ink, name};
use super::picture::{Ink, strip};
use crate::data::Sample;
use crate::probe;
use crate::sampling::Wish;

/// Neighbours shown beside a drawn glyph.
const NEIGHBOURS: usize = 7;
/// Damping of the whitening; see [`Whitening::new`].
const DAMPING: f64 = 0.1;

/// Category × block, pushed, moved, and moved alone.
pub fn heat_maps(report: &Report) -> Result<String> {
    let groups = report.data.groups();
    let group_of: HashMap<u64, usize> = (report.data.samples.iter())
        .filter_map(|sample| {
            let group = &report.data.typefaces[sample.typeface].group;
            Some((sample.id, groups.iter().position(|known| known == group)?))
        })
        .collect();
    let group_of = |id| group_of.get(&id).copied();
    let held_out = report.influence.held_out(groups.len(), group_of, DAMPING)?;
    let moved = held_out.groups();
    let blocks = report.model.blocks();
    let rows: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
    let owned: Vec<bool> = groups.iter().map(|&group| ink(report, group) == Ink::Red).collect();
    let map = |value: &dyn Fn(usize, usize) -> f64| {
        let cells = (0..groups.len()).flat_map(|g| (0..blocks.len()).map(move |b| (g, b)));
        let values: Vec<f64> = cells.map(|(g, b)| value(g, b)).collect();
        HeatMap { rows: &rows, columns: &blocks, values: &values, owned: &owned }.svg()
    };
    let body = format!(
        "<h3>moved: how far the group took each block, ‖Σ A‖</h3>{}\
         <h3>pushed: how much its samples pulled, Σ ‖A‖, whether or not they agreed</h3>{}\
         <h3>alone: what it moved that nobody else did, the others' directions divided out</h3>{}",
        map(&|g, b| moved.moved(g, b)),
        map(&|g, b| moved.pushed(g, b)),
        map(&|g, b| held_out.alone(g, b)),
    );
    let lead = "Each column is a block of the model, from input to output, and adds up to 100. \
                The accumulated influence A counts each sample's gradient as it was routed, at \
                the step size it had.";
    Ok(section("Who moved which part of the model", lead, &body))
}

/// Training glyphs of highest influence on some of the drawn ones.
pub fn nearest(report: &Report, faces: &Faces) -> Result<String> {
    let whitening = Whitening::new(report.influence, DAMPING)?;
    let mut body = String::from("<div class=near>");
    for index in picks(report, faces) {
        let wish = faces.wishes[index];
        let query = probe::query(report.model, faces.image(index), wish)?;
        let query = whitening.apply(&query)?;
        let scores = report.influence.influence(&query, Similarity::Cosine)?;
        let top = ranked(&scores, report.influence.blocks());
        let shown = once_each(report, &top);
        let made = Sample::glyph(wish.typeface, wish.character);
        let colour = |sample: &Sample| ink(report, &report.data.typefaces[sample.typeface].group);
        body += &format!(
            "<div class=pick><figure class=made>{}<figcaption>drawn<br>{}</figcaption></figure>",
            strip(faces.image(index), colour(&made), 4, "drawn")?,
            escape(&name(report, &made)),
        );
        for (sample, score, copies) in shown.iter().take(NEIGHBOURS - 1) {
            let copies = if *copies > 1 { format!(" ×{copies}") } else { String::new() };
            body += &format!(
                "<figure>{}<figcaption>{:.2}{copies}<br>{}</figcaption></figure>",
                strip(&report.data.image(sample), colour(sample), 3, &name(report, sample))?,
                score,
                escape(&name(report, sample)),
            );
        }
        body += "</div>";
    }
    body += "</div>";
    let lead = "Left, a glyph the model drew. Beside it, the training glyphs whose recorded \
                influence is most alike to its gradient: the mean over the blocks of the cosine \
                of the two, whitened. Copies that share the credit are counted together.";
    Ok(section("Which training glyphs stand behind a drawn one", lead, &body))
}

/// The samples of highest mean cosine over the blocks, best first. Whitening takes out what all
/// samples share, the cosine keeps loud samples from coming first everywhere, and the mean lets
/// every block count the same. Asked about training glyphs themselves, four of five come first.
fn ranked(influence: &Influence, blocks: usize) -> Vec<(u64, f64)> {
    let mut scores = vec![0.0; influence.ids().len()];
    for block in 0..blocks {
        for (sum, score) in scores.iter_mut().zip(influence.block(block)) {
            *sum += score / blocks as f64;
        }
    }
    let mut ranked: Vec<(u64, f64)> = influence.ids().iter().copied().zip(scores).collect();
    ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(NEIGHBOURS * 8);
    ranked
}

/// One drawn glyph of each group, another letter each time, and two more of the tracked group.
fn picks(report: &Report, faces: &Faces) -> Vec<usize> {
    let groups = report.data.groups();
    let each = faces.wishes.len() / report.data.typefaces.len();
    let mut picks = Vec::new();
    for (turn, group) in groups.iter().chain([&report.data.owned_group(); 2]).enumerate() {
        let members: Vec<usize> = (0..report.data.typefaces.len())
            .filter(|&face| report.data.typefaces[face].group == **group && report.trained(face))
            .collect();
        if let Some(face) = members.get((turn * 2 + 1) % members.len().max(1)) {
            picks.push(face * each + turn * 3 % each);
        }
    }
    picks
}

/// Planted copies of one glyph count as one, with the number of those among the best.
fn once_each(report: &Report, top: &[(u64, f64)]) -> Vec<(Sample, f64, usize)> {
    let mut shown: Vec<(Sample, f64, usize)> = Vec::new();
    for &(id, score) in top {
        let Some(&sample) = report.data.sample(id) else { continue };
        let same = |s: &Sample| (s.typeface, s.character) == (sample.typeface, sample.character);
        match shown.iter_mut().find(|(known, ..)| same(known)) {
            Some((.., copies)) => *copies += 1,
            None => shown.push((sample, score, 1)),
        }
    }
    shown
}

/// Planted copies: what the record says about them, if there are any.
pub fn duplicates(report: &Report) -> Result<String> {
    let mut planted: BTreeMap<(usize, usize), Vec<u64>> = BTreeMap::new();
    let copies = report.data.samples.iter().filter(|sample| sample.is_copy());
    for copy in copies.filter(|copy| report.trained(copy.typeface)) {
        planted.entry((copy.typeface, copy.character)).or_default().push(copy.id);
    }
    for sample in report.data.samples.iter().filter(|sample| !sample.is_copy()) {
        if let Some(ids) = planted.get_mut(&(sample.typeface, sample.character)) {
            ids.push(sample.id);
        }
    }
    let times = planted.values().map(Vec::len);
    let (Some(least), Some(most)) = (times.clone().min(), times.max()) else {
        return Ok(String::new());
    };
    let times = if least == most { most.to_string() } else { format!("{least} to {most}") };
    let body = format!(
        "<div class=two><div>{}</div><div><h3>Most alike without being planted</h3>{}</div></div>",
        planted_table(report, &planted)?,
        natural_table(report, &planted)?
    );
    let lead = format!(
        "Some glyphs were given to the training {times} times under ids of their own. Asked about \
         such a glyph, the record should name its copies first, and they share the credit. What \
         is already fitted has a low gradient norm at its noise level: the last column says which \
         share of all samples is louder."
    );
    Ok(section("Planted duplicates", &lead, &body))
}

fn planted_table(report: &Report, planted: &BTreeMap<(usize, usize), Vec<u64>>) -> Result<String> {
    let whitening = Whitening::new(report.influence, DAMPING)?;
    let quiet = quietness(report);
    let mut rows = Vec::new();
    for (&(typeface, character), ids) in planted {
        let sample = Sample::glyph(typeface, character);
        let group = &report.data.typefaces[typeface].group;
        let image = report.data.image(&sample);
        let query = probe::query(report.model, &image, Wish { typeface, character })?;
        let query = whitening.apply(&query)?;
        let scores = report.influence.influence(&query, Similarity::Cosine)?;
        let top = ranked(&scores, report.influence.blocks());
        let found = top.iter().take(ids.len()).filter(|(id, _)| ids.contains(id)).count();
        let known: Vec<f64> = ids.iter().filter_map(|id| quiet.get(id).copied()).collect();
        // Of glyphs that no step reached the record knows nothing.
        let (found, louder) = match known.len() {
            0 => ("–".into(), "–".into()),
            count => {
                let share = known.iter().sum::<f64>() / count as f64;
                (format!("{found} of {count}"), format!("{:.0} %", 100.0 * share))
            }
        };
        rows.push(vec![
            strip(&image, ink(report, group), 2, &name(report, &sample))?,
            escape(&name(report, &sample)),
            format!("×{}", ids.len()),
            found,
            louder,
        ]);
    }
    let head = ["", "planted glyph", "times", "of its copies named first", "of samples louder"];
    Ok(table(&head, rows))
}

fn natural_table(report: &Report, planted: &BTreeMap<(usize, usize), Vec<u64>>) -> Result<String> {
    let same = |ids: [u64; 2]| planted.values().any(|set| ids.iter().all(|id| set.contains(id)));
    let mut rows = Vec::new();
    let pairs = report.influence.near_duplicates(200);
    for pair in pairs.iter().filter(|pair| !same(pair.ids)).take(6) {
        let [Some(a), Some(b)] = pair.ids.map(|id| report.data.sample(id)) else { continue };
        let images = report.data.images(&[*a, *b]);
        let names = format!("{}<br>{}", escape(&name(report, a)), escape(&name(report, b)));
        let picture = strip(&images, Ink::Black, 2, "near-duplicates")?;
        rows.push(vec![picture, names, format!("{:.2}", pair.cosine)]);
    }
    Ok(table(&["", "", "cosine"], rows))
}

/// Per sample the share of samples that are louder: the mean gradient norm relative to the
/// median at each noise level, averaged over the levels.
fn quietness(report: &Report) -> HashMap<u64, f64> {
    let ids = report.influence.ids();
    let bins = report.influence.bins();
    let level = |id: u64, bin: usize| report.influence.norms(id)?.get(bin)?.mean();
    let medians: Vec<f64> = (0..bins)
        .map(|bin| {
            let mut all: Vec<f64> = ids.iter().filter_map(|&id| level(id, bin)).collect();
            all.sort_unstable_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(1.0)
        })
        .collect();
    let mut loudness: Vec<(u64, f64)> = (ids.iter())
        .map(|&id| {
            let heard: Vec<f64> = (0..bins)
                .filter_map(|bin| Some((level(id, bin)? / medians[bin]).max(1e-12).ln()))
                .collect();
            (id, heard.iter().sum::<f64>() / heard.len().max(1) as f64)
        })
        .collect();
    loudness.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
    let count = loudness.len() as f64;
    (loudness.iter().enumerate())
        .map(|(rank, &(id, _))| (id, (count - 1.0 - rank as f64) / count))
        .collect()
}
