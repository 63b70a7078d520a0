//! `cargo xtask evaluate duplicates`: are planted copies told from what is there once?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::study::{Arguments, Estimate, Run, SampleScore, auroc, bootstrap};
use crate::shell;

/// Ids of copies of one glyph are equal up to a multiple of this.
const COPY_IDS: u64 = 100_000;
const BAR: f64 = 0.97;

/// What a sample is ranked by.
struct Signal {
    name: &'static str,
    of: fn(&SampleScore) -> f64,
    colour: RGBColor,
}

const SIGNALS: [Signal; 4] = [
    Signal { name: "the guard's score", of: |it| it.total, colour: RGBColor(183, 43, 29) },
    Signal { name: "low gradient norm", of: |it| -it.deviation, colour: RGBColor(34, 57, 104) },
    Signal {
        name: "unusual gradient norm",
        of: |it| it.deviation.abs(),
        colour: RGBColor(96, 130, 182),
    },
    Signal { name: "low loss (baseline)", of: |it| -it.loss, colour: RGBColor(125, 129, 143) },
];

/// Which copies count as positives.
struct Part {
    name: &'static str,
    of: fn(&SampleScore) -> bool,
}

const PARTS: [Part; 4] = [
    Part { name: "all", of: |_| true },
    Part { name: "×2 and ×3", of: |it| it.times <= 3 },
    Part { name: "×12 and more", of: |it| it.times >= 12 },
    Part { name: "shifted by a pixel", of: |it| it.shifted },
];

/// Runs what is missing, then writes `benches/record/duplicates.{md,svg}`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runs = arguments.runs(false)?;
    let times = runs[0].scores.len();
    let measured: Vec<(f64, [Estimate; 4])> = (0..times)
        .map(|at| {
            let share = runs[0].scores[at].step as f64 / runs[0].steps as f64;
            (share, SIGNALS.each_ref().map(|signal| measure(&runs, at, signal, &PARTS[0])))
        })
        .collect();
    let record = shell::root().join("benches/record");
    fs::write(
        record.join("duplicates.md"),
        page(&arguments.command("duplicates"), &runs, &measured),
    )?;
    draw(&measured, &record.join("duplicates.svg"))?;
    println!("benches/record/duplicates.md and .svg written");
    Ok(())
}

/// A run's sample: id, score, planted.
type Scored = (u64, f64, bool);

/// AUROC of a signal at one time of the runs.
fn measure(runs: &[Run], at: usize, signal: &Signal, part: &Part) -> Estimate {
    estimate(runs.iter().map(|run| {
        let all = run.scores[at].samples.iter().filter(|it| it.times == 1 || (part.of)(it));
        all.map(|it| (it.sample, (signal.of)(it), it.times > 1)).collect()
    }))
}

/// AUROC, the mean over runs: each run's samples are ranked among themselves.
fn estimate(runs: impl Iterator<Item = Vec<Scored>>) -> Estimate {
    // Units of the bootstrap: glyphs, with their copies in every run.
    let mut glyphs: BTreeMap<u64, usize> = BTreeMap::new();
    let mut unit = |(sample, score, planted): Scored| {
        let next = glyphs.len();
        (*glyphs.entry(sample % COPY_IDS).or_insert(next), score, planted)
    };
    let runs: Vec<Vec<(usize, f64, bool)>> =
        runs.map(|run| run.into_iter().map(&mut unit).collect()).collect();
    bootstrap(glyphs.len(), |drawn| {
        let mut weights = vec![0.0; glyphs.len()];
        drawn.iter().for_each(|&unit| weights[unit] += 1.0);
        let of_run = |run: &Vec<(usize, f64, bool)>| {
            auroc(
                run.iter().map(|&(unit, score, planted)| (score, planted, weights[unit])).collect(),
            )
        };
        runs.iter().map(of_run).sum::<f64>() / runs.len() as f64
    })
}

fn cell(it: Estimate) -> String {
    format!("{:.3} ({:.3}–{:.3})", it.value, it.low, it.high)
}

fn page(command: &str, runs: &[Run], measured: &[(f64, [Estimate; 4])]) -> String {
    let samples = &runs[0].scores[0].samples;
    let planted = samples.iter().filter(|it| it.times > 1).count();
    let mut page = format!(
        "# Duplicates\n\n\
         `{command}`: {} run(s) of the example's model, {} steps of its default \
         batch, over {} samples, of which {planted} are copies of 20 planted glyphs, there ×2 to \
         ×20; of ten glyphs half of the copies are shifted by a pixel. AUROC of telling them from \
         the others, at any time of the run, with intervals of 95 % (bootstrap over glyphs).\n\n\
         ![AUROC over the run](duplicates.svg)\n\n",
        runs.len(),
        runs[0].steps,
        samples.len(),
    );
    page += EXPLANATION;
    let names: Vec<&str> = SIGNALS.iter().map(|signal| signal.name).collect();
    writeln!(page, "\n| of the run | {} | ≥ {BAR} |", names.join(" | ")).expect("text");
    page += "|---:|---|---|---|---|---|\n";
    for (share, cells) in measured {
        let holds =
            if cells[0].value >= BAR && cells[0].value > cells[3].value { "yes" } else { "no" };
        let cells = cells.map(cell).join(" | ");
        writeln!(page, "| {:.0} % | {cells} | {holds} |", 100.0 * share).expect("text");
    }
    page += "\n## By kind, at the end of the run\n\n| copies | ";
    page += &names.join(" | ");
    page += " |\n|---|---|---|---|---|\n";
    let last = runs[0].scores.len() - 1;
    for part in &PARTS {
        let cells = SIGNALS.each_ref().map(|signal| cell(measure(runs, last, signal, part)));
        writeln!(page, "| {} | {} |", part.name, cells.join(" | ")).expect("text");
    }
    page
}

fn draw(measured: &[(f64, [Estimate; 4])], path: &Path) -> Result<()> {
    // Plotters' errors borrow the drawing, so they are kept as text.
    drawing(measured, path).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn drawing(
    measured: &[(f64, [Estimate; 4])],
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    const INK: RGBColor = RGBColor(28, 31, 43);
    let lowest = measured.iter().flat_map(|(_, all)| all).map(|it| it.low).fold(0.5, f64::min);
    let root = SVGBackend::new(path, (820, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.15..1.0, lowest - 0.03..1.02)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("share of the run")
        .y_desc("AUROC")
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    for (k, signal) in SIGNALS.iter().enumerate() {
        let colour = signal.colour;
        let line = measured.iter().map(|(share, all)| (*share, all[k].value));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(3)))?
            .label(signal.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
        let bars = measured.iter().map(|(share, all)| {
            let ends = vec![(*share, all[k].low), (*share, all[k].high)];
            PathElement::new(ends, colour.stroke_width(1))
        });
        chart.draw_series(bars)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font(("sans-serif", 14, &INK))
        .draw()?;
    root.present()?;
    Ok(())
}

const EXPLANATION: &str = "\
The guard's score is led by the number of near-duplicates by fingerprint, here the magnitude \
spectrum of the picture: content, supplied beside the gradients, so it does not depend on how far the \
run has got. Among the negatives are glyphs that several typefaces share pixel by pixel. The norm and \
the loss are those of the training pass, relative to all samples' at the same noise level and time, \
averaged over a sample's visits; they say whether a picture is fitted, not whether it is there twice.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_run_of_the_same_glyphs_narrows_no_interval() {
        // Every fifth of 40 glyphs is planted, with two copies.
        let glyph = |k: u64| {
            let score = (k * 7 % 40) as f64 + if k.is_multiple_of(5) { 8.0 } else { 0.0 };
            let copy = k.is_multiple_of(5).then_some((k + COPY_IDS, score + 1.0, true));
            [(k, score, k.is_multiple_of(5))].into_iter().chain(copy)
        };
        let run: Vec<Scored> = (0..40).flat_map(glyph).collect();
        let [one, three] = [1, 3].map(|runs| estimate(std::iter::repeat_n(run.clone(), runs)));
        assert!(one.low < one.value && one.value < one.high);
        assert!((one.value - three.value).abs() < 1e-12);
        assert!((one.low - three.low).abs() < 1e-12 && (one.high - three.high).abs() < 1e-12);
    }
}
