//! The owned groups' losses, a panel for each: against the dial, between its two bounds, and while they are
//! learned again.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::{curves, mean_curve, spread};
use super::{Group, Seed, Variant};

const INK: RGBColor = RGBColor(28, 31, 43);
const SOFT: RGBColor = RGBColor(125, 129, 143);
const RED: RGBColor = RGBColor(183, 43, 29);
const BLUE: RGBColor = RGBColor(34, 57, 104);
const GREEN: RGBColor = RGBColor(45, 125, 95);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Losses against the dial: means over the seeds, and each seed as a dot.
pub fn dials(groups: &[Group], path: &Path) -> Result<()> {
    panels(groups, path, |group, panel| {
        let mean = |value: &dyn Fn(&Seed) -> f64| {
            spread(&group.seeds.iter().map(value).collect::<Vec<_>>()).0
        };
        let unrouted = mean(&|seed| seed.of(Variant::Unrouted).losses.owned[0].loss);
        let without = mean(&|seed| seed.of(Variant::WithoutOwned).losses.owned_no_style);
        let bounds = [(unrouted, "unrouted"), (without, "never trained on the group")];
        let lines = [(Variant::All, RED), (Variant::Strict, BLUE)].into_iter();
        let lines = lines.map(|(variant, colour)| {
            let line = |seed: &Seed| -> Vec<(f64, f64)> {
                let dials = &seed.of(variant).losses.owned;
                dials.iter().map(|at| (at.dial, at.loss)).collect()
            };
            let each: Vec<_> = group.seeds.iter().map(line).collect();
            let points = (0..each[0].len()).map(|k| {
                (each[0][k].0, spread(&each.iter().map(|seed| seed[k].1).collect::<Vec<_>>()).0)
            });
            let name = variant.title().to_owned();
            Line { name, colour, points: points.collect(), dots: each.concat() }
        });
        let axis = Axis { title: "dial of the owned region", ends: [1.0, 0.0], doublings: false };
        draw(panel, group, axis, &bounds, &lines.collect::<Vec<_>>())
    })
}

/// Losses while the groups are learned again, both in logarithms.
pub fn relearning(groups: &[Group], path: &Path) -> Result<()> {
    // Before the first step stands where one doubling less would.
    let place = |steps: u64| (steps.max(2) as f64).log2();
    panels(groups, path, |group, panel| {
        let ways = curves(group);
        let colours = [RED, BLUE, GREEN, SOFT];
        let lines: Vec<Line> = (ways.iter().enumerate())
            .map(|(k, (name, each))| {
                let points =
                    mean_curve(each).into_iter().map(|(step, loss)| (place(step), loss.log2()));
                let own = |curve: &&super::Curve| {
                    let both = curve.steps.iter().zip(&curve.losses);
                    both.map(|(&step, &loss)| (place(step), loss.log2())).collect::<Vec<_>>()
                };
                let colour = colours[k];
                let dots = each.iter().flat_map(own).collect();
                Line { name: name.clone(), colour, points: points.collect(), dots }
            })
            .collect();
        let last = lines.iter().flat_map(|line| &line.points).map(|at| at.0).fold(2.0, f64::max);
        let seeds = group.seeds.iter().map(|s| s.of(Variant::Unrouted).losses.owned[0].loss);
        let bounds = [(spread(&seeds.collect::<Vec<_>>()).0.log2(), "unrouted")];
        let axis = Axis { title: "steps of learning it again", ends: [1.0, last], doublings: true };
        draw(panel, group, axis, &bounds, &lines)
    })
}

/// The axis across, and whether both count doublings.
struct Axis {
    title: &'static str,
    ends: [f64; 2],
    doublings: bool,
}

/// A line and the seeds around it.
struct Line {
    name: String,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
    dots: Vec<(f64, f64)>,
}

fn panels(
    groups: &[Group],
    path: &Path,
    mut draw: impl FnMut(&Group, &Panel) -> Drawn,
) -> Result<()> {
    let mut all = || -> Drawn {
        let root = SVGBackend::new(path, (560 * groups.len() as u32, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        for (group, panel) in groups.iter().zip(root.split_evenly((1, groups.len()))) {
            draw(group, &panel)?;
        }
        Ok(root.present()?)
    };
    // Plotters' errors borrow the drawing, so they are kept as text.
    all().map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn draw(
    panel: &Panel,
    group: &Group,
    axis: Axis,
    bounds: &[(f64, &'static str)],
    lines: &[Line],
) -> Drawn {
    let levels = bounds.iter().map(|bound| bound.0);
    let all = lines.iter().flat_map(|line| &line.dots).map(|dot| dot.1).chain(levels);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), y| (y.min(low), y.max(high)));
    let Axis { title, ends: [left, right], doublings } = axis;
    let middle = (left + right) / 2.0;
    let room = high - low;
    let text = |value: &f64| match doublings {
        true if *value >= 0.0 => format!("{:.0}", value.exp2()),
        true => format!("{:.2}", value.exp2()),
        false => format!("{}", (value * 1000.0).round() / 1000.0),
    };
    let mut chart = ChartBuilder::on(panel)
        .margin(18)
        .caption(&group.name, ("sans-serif", 17, &INK))
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(left..right, low - 0.25 * room..high + 0.4 * room)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(5)
        .x_label_formatter(&text)
        .y_label_formatter(&text)
        .x_desc(title)
        .y_desc("loss on the owned group")
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    let style = ("sans-serif", 14, &SOFT).into_text_style(panel);
    let style = style.pos(Pos::new(HPos::Center, VPos::Bottom));
    for &(level, text) in bounds {
        let ends = [(left, level), (right, level)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, SOFT.into()))?;
        chart.draw_series([Text::new(text, (middle, level), style.clone())])?;
    }
    for line in lines {
        draw_line(&mut chart, line)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14, &INK))
        .draw()?;
    Ok(())
}

fn draw_line<'a>(
    chart: &mut ChartContext<'_, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    line: &Line,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let colour = line.colour;
    chart
        .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(3)))?
        .label(&line.name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
    let dots = line.dots.iter();
    chart.draw_series(dots.map(|&dot| Circle::new(dot, 3, colour.filled())))?;
    Ok(())
}
