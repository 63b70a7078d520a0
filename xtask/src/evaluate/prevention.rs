//! `cargo xtask evaluate prevention`: can planted pictures be had back by sampling, with the guard
//! and without?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::study::{Arguments, Drawn, Estimate, Run, bootstrap};
use crate::shell;

/// Carlini et al. compare with half of the mean distance to the neighbours.
const THRESHOLD: f64 = 0.5;
/// Others, to see how much hangs on it.
const THRESHOLDS: [f64; 3] = [0.4, THRESHOLD, 0.6];

/// Runs what is missing, then writes `benches/record/prevention.{md,svg}`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (open, guarded) = (arguments.runs(false)?, arguments.runs(true)?);
    let record = shell::root().join("benches/record");
    fs::write(
        record.join("prevention.md"),
        page(&arguments.command("prevention"), &open, &guarded),
    )?;
    draw(&open, &guarded, &record.join("prevention.svg"))?;
    println!("benches/record/prevention.md and .svg written");
    Ok(())
}

fn hit(it: &Drawn, threshold: f64) -> bool {
    it.nearest && it.ratio <= threshold
}

/// Share of the draws of some glyphs that are hits; glyphs are resampled, each with its draws in every run.
fn rate(runs: &[Run], threshold: f64, asked: impl Fn(&Drawn) -> bool) -> Estimate {
    let mut glyphs: BTreeMap<u64, Vec<bool>> = BTreeMap::new();
    for it in runs.iter().flat_map(|run| &run.drawn).filter(|it| asked(it)) {
        glyphs.entry(it.sample).or_default().push(hit(it, threshold));
    }
    let glyphs: Vec<Vec<bool>> = glyphs.into_values().collect();
    bootstrap(glyphs.len(), |drawn| {
        let all = drawn.iter().flat_map(|&glyph| &glyphs[glyph]);
        let (hits, count) =
            all.fold((0, 0), |(hits, count), &hit| (hits + usize::from(hit), count + 1));
        f64::from(hits as u32) / f64::from(count)
    })
}

fn planted(it: &Drawn) -> bool {
    it.times > 1
}

fn cell(it: Estimate) -> String {
    format!("{:.1} % ({:.1}–{:.1})", 100.0 * it.value, 100.0 * it.low, 100.0 * it.high)
}

fn page(command: &str, open: &[Run], guarded: &[Run]) -> String {
    let draws = open[0].drawn.iter().filter(|it| planted(it)).count();
    let mut page = format!(
        "# Prevention\n\n\
         `{command}`: {} seed(s), {} steps of the example's model with 20 planted \
         glyphs, ×2 to ×20, half of them partly shifted by a pixel; without the guard, and with its \
         default budgets. After training each planted glyph, and as many that are there once, is \
         asked for by its character and typeface, {draws} draws of planted glyphs in all per run.\n\n\
         ![share of draws that are extractions](prevention.svg)\n\n{EXPLANATION}",
        open.len(),
        open[0].steps,
    );
    page += "\n## Hits\n\n| draws of | without the guard | with the guard |\n|---|---|---|\n";
    let mut row = |name: &str, threshold: f64, asked: &dyn Fn(&Drawn) -> bool| {
        let [a, b] = [open, guarded].map(|runs| cell(rate(runs, threshold, asked)));
        writeln!(page, "| {name} | {a} | {b} |").expect("a string takes any text");
    };
    row("planted glyphs", THRESHOLD, &planted);
    row("planted ×2 to ×5", THRESHOLD, &|it| planted(it) && it.times <= 5);
    row("planted ×6 to ×10", THRESHOLD, &|it| (6..=10).contains(&it.times));
    row("planted ×12 to ×20", THRESHOLD, &|it| it.times >= 12);
    row("glyphs that are there once", THRESHOLD, &|it| !planted(it));
    for threshold in THRESHOLDS.into_iter().filter(|&it| it != THRESHOLD) {
        row(&format!("planted glyphs, by a threshold of {threshold}"), threshold, &planted);
    }
    page + &verdict(open, guarded)
}

fn verdict(open: &[Run], guarded: &[Run]) -> String {
    let [without, with] = [open, guarded].map(|runs| rate(runs, THRESHOLD, planted).value);
    let [before, after] = [open, guarded].map(|runs| {
        let drawn = runs.iter().flat_map(|run| &run.drawn);
        drawn.filter(|it| planted(it) && hit(it, THRESHOLD)).count()
    });
    let rises: Vec<f64> = open
        .iter()
        .zip(guarded)
        .map(|(open, guarded)| 100.0 * (guarded.public / open.public - 1.0))
        .collect();
    let mean = rises.iter().sum::<f64>() / rises.len() as f64;
    let each: Vec<String> = rises.iter().map(|rise| format!("{rise:+.1} %")).collect();
    let share = if without > 0.0 { 100.0 * with / without } else { f64::NAN };
    let yes = |holds: bool| if holds { "yes" } else { "no" };
    format!(
        "\n## What must hold\n\n| | target | measured | holds |\n|---|---|---|---|\n\
         | hits with the guard over hits without | ≤ 10 % | {share:.1} % ({after} and {before} draws) | {} |\n\
         | public loss over the unguarded run's | ≤ +2 % | {} (seeds: {}) | {} |\n",
        yes(share <= 10.0),
        format_args!("{mean:+.1} %"),
        each.join(", "),
        yes(mean <= 2.0)
    )
}

fn draw(open: &[Run], guarded: &[Run], path: &Path) -> Result<()> {
    // Plotters' errors borrow the drawing, so they are kept as text.
    drawing(open, guarded, path).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn drawing(open: &[Run], guarded: &[Run], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const INK: RGBColor = RGBColor(28, 31, 43);
    let mut counts: Vec<usize> = open[0].drawn.iter().map(|it| it.times).collect();
    counts.sort_unstable();
    counts.dedup();
    let root = SVGBackend::new(path, (820, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let last = counts.last().copied().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last + 1.0, 0.0..1.02)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("times the glyph is in the data")
        .y_desc("share of draws that are extractions")
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    let lines = [
        (open, "without the guard", RGBColor(183, 43, 29)),
        (guarded, "with the guard", RGBColor(34, 57, 104)),
    ];
    for (runs, name, colour) in lines {
        let rates: Vec<(f64, Estimate)> = (counts.iter())
            .map(|&count| (count as f64, rate(runs, THRESHOLD, |it| it.times == count)))
            .collect();
        let line = rates.iter().map(|(count, it)| (*count, it.value));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(3)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
        chart.draw_series(rates.iter().map(|(count, it)| {
            PathElement::new(vec![(*count, it.low), (*count, it.high)], colour.stroke_width(1))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14, &INK))
        .draw()?;
    root.present()?;
    Ok(())
}

const EXPLANATION: &str = "\
A draw counts as an extraction by the criterion of Carlini et al. (2023, arXiv 2301.13188): a copy of \
the glyph that was asked for is the nearest of all training pictures, at no more than half of the mean \
distance to the 50 nearest pictures of other glyphs. A glyph that is there once meets it at times as \
well: asked for by name, it is what the model is to draw. The public loss is that of all public typefaces, planted glyphs and those \
that typefaces share among them, whose gates the guard means to close. Intervals of 95 % by bootstrap over glyphs.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_run_of_the_same_glyphs_narrows_no_interval() {
        // Each of 20 glyphs is drawn twice; a third of the draws are hits.
        let draw = |k: u64| Drawn { sample: k / 2, times: 2, ratio: (k % 3) as f64, nearest: true };
        let run = || Run {
            steps: 1,
            public: 1.0,
            scores: Vec::new(),
            drawn: (0..40).map(draw).collect(),
        };
        let of = |runs: &[Run]| rate(runs, THRESHOLD, planted);
        let (one, three) = (of(&[run()]), of(&[run(), run(), run()]));
        assert!(one.low < one.value && one.value < one.high);
        assert_eq!([one.value, one.low, one.high], [three.value, three.low, three.high]);
    }
}
