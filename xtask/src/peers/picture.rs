//! The table as a picture: times over PyTorch's plain pass, workload by workload.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::statistics::Spread;
use super::timing::Timed;

const INK: RGBColor = RGBColor(28, 31, 43);
const SOFT: RGBColor = RGBColor(125, 129, 143);
/// Of the participants, by their place; ours are red.
const COLOURS: [RGBColor; 12] = [
    RGBColor(222, 150, 140),
    RGBColor(238, 190, 182),
    RGBColor(205, 85, 75),
    RGBColor(183, 43, 29),
    RGBColor(235, 110, 60),
    RGBColor(125, 129, 143),
    RGBColor(34, 57, 104),
    RGBColor(46, 125, 100),
    RGBColor(130, 180, 90),
    RGBColor(120, 80, 160),
    RGBColor(200, 140, 200),
    RGBColor(90, 160, 210),
];
const WIDTH: u32 = 900;
/// Of a workload's line, the margins, and the names left of it.
const LINE: u32 = 26;
const TOP: u32 = 96;
const BOTTOM: u32 = 50;
const NAMES: u32 = 210;

/// Draws medians and quartiles.
pub fn draw(timed: &[Timed], path: &Path) -> Result<()> {
    // Plotters' errors borrow the drawing, so they are kept as text.
    drawing(timed, path).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn drawing(timed: &[Timed], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lines = timed.len() as u32;
    let root = SVGBackend::new(path, (WIDTH, TOP + BOTTOM + LINE * lines)).into_drawing_area();
    root.fill(&WHITE)?;
    let [low, high] = range(timed);
    let mut chart = ChartBuilder::on(&root)
        .margin_right(24)
        .margin_top(TOP)
        .x_label_area_size(BOTTOM)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((low..high).log_scale(), f64::from(lines)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(SOFT.mix(0.2))
        .x_desc("time of a pass over PyTorch's plain forward and backward")
        .x_label_formatter(&|x| format!("{x}"))
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    chart.draw_series(LineSeries::new([(1.0, 0.0), (1.0, f64::from(lines))], SOFT))?;
    let name = ("sans-serif", 13, &INK).into_text_style(&root);
    let name = name.pos(Pos::new(HPos::Right, VPos::Center));
    for (at, timed) in timed.iter().enumerate() {
        let y = TOP + LINE * at as u32 + LINE / 2;
        root.draw(&Text::new(timed.workload.clone(), (NAMES as i32 - 10, y as i32), name.clone()))?;
        for (place, outcome) in timed.outcomes.iter().enumerate() {
            let Ok(measured) = &outcome.measured else { continue };
            let Some(over) = Spread::of(&measured.over_torch) else { continue };
            let colour = colour(place);
            let y = at as f64 + 0.5;
            chart.draw_series(LineSeries::new([(over.low, y), (over.high, y)], colour))?;
            chart.draw_series([Circle::new((over.middle, y), 5, colour.mix(0.8).filled())])?;
        }
    }
    legend(&root, timed)?;
    root.present()?;
    Ok(())
}

/// Names in rows of four above the chart.
fn legend(
    root: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    timed: &[Timed],
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", 13, &INK).into_text_style(root);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    let peers = timed.first().map_or(&[][..], |timed| &timed.outcomes);
    for (place, outcome) in peers.iter().enumerate() {
        let (x, y) = (30 + 215 * (place as i32 % 4), 20 + 22 * (place as i32 / 4));
        root.draw(&Circle::new((x, y), 5, colour(place).filled()))?;
        root.draw(&Text::new(outcome.peer.name, (x + 12, y), style.clone()))?;
    }
    Ok(())
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

/// What the axis spans: all medians and quartiles, and 1.
fn range(timed: &[Timed]) -> [f64; 2] {
    let outcomes = timed.iter().flat_map(|timed| &timed.outcomes);
    let measured = outcomes.filter_map(|outcome| outcome.measured.as_ref().ok());
    let spreads = measured.filter_map(|measured| Spread::of(&measured.over_torch));
    let (low, high) =
        spreads.fold((1.0, 1.0), |(low, high), s| (f64::min(low, s.low), f64::max(high, s.high)));
    [low / 1.2, high * 1.2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::participants;
    use crate::peers::timing::{Measured, Outcome};
    use crate::peers::worker::Memory;

    /// Every participant at the given time over PyTorch's plain pass; the last one failed.
    fn timed(workload: &str, over: f64) -> Timed {
        let mut outcomes: Vec<Outcome> = participants::chosen(&[])
            .unwrap()
            .into_iter()
            .map(|peer| {
                let memory = Memory { before_bytes: 0, peak_bytes: 0 };
                let over_torch = vec![over, over * 1.1, over * 1.2];
                let (times, over_own) = (vec![1.0; 3], vec![1.0; 3]);
                let fastest = [1.0; 2];
                let measured = Measured { times, over_own, over_torch, fastest, memory };
                Outcome { peer, measured: Ok(measured) }
            })
            .collect();
        outcomes.last_mut().unwrap().measured = Err("cannot".into());
        Timed { workload: workload.into(), outcomes, losses: None }
    }

    #[test]
    fn the_axis_spans_all_of_it() {
        let [low, high] = range(&[timed("a", 0.5), timed("b", 20.0)]);
        assert!(low < 0.5 && high > 24.0);
        assert_eq!(range(&[]).map(|end| end > 0.0), [true; 2]);
    }

    #[test]
    fn every_workload_and_participant_is_named() {
        let path = std::env::temp_dir().join(format!("peers-{}.svg", std::process::id()));
        draw(&[timed("one net", 0.8), timed("another", 3.0)], &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for name in ["one net", "another", "Bergson", "gradroute, count", "TRAK"] {
            assert!(text.contains(name), "{name}");
        }
        // A dot for each that has a time, and one in the legend for each.
        assert_eq!(text.matches("<circle").count(), 2 * 11 + 12);
    }
}
