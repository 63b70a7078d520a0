//! `attenuation.svg`: the owned group's loss against the dial, between its two bounds.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::spread;
use super::{Seed, Variant};

const INK: RGBColor = RGBColor(28, 31, 43);
const SOFT: RGBColor = RGBColor(125, 129, 143);

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Draws means over the seeds, and each seed as a dot.
pub fn draw(seeds: &[Seed], path: &Path) -> Result<()> {
    // Plotters' errors borrow the drawing, so they are kept as text.
    drawing(seeds, path).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn drawing(seeds: &[Seed], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mean =
        |value: &dyn Fn(&Seed) -> f64| spread(&seeds.iter().map(value).collect::<Vec<_>>()).0;
    let unrouted = mean(&|seed| seed.of(Variant::Unrouted).losses.owned[0].loss);
    let without = mean(&|seed| seed.of(Variant::WithoutOwned).losses.owned_no_style);
    let all = seeds.iter().flat_map(|seed| &seed.outcomes).flat_map(|run| &run.losses.owned);
    let top = all.map(|at| at.loss).fold(without, f64::max);

    let root = SVGBackend::new(path, (820, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..0.0, unrouted * 0.8..top * 1.15)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(5)
        .x_desc("dial of the owned region")
        .y_desc("loss on the owned group")
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    let style = ("sans-serif", 14, &SOFT).into_text_style(&root);
    let style = style.pos(Pos::new(HPos::Center, VPos::Bottom));
    for (level, text) in [(unrouted, "unrouted"), (without, "never trained on the group")] {
        let ends = [(1.0, level), (0.0, level)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, SOFT.into()))?;
        chart.draw_series([Text::new(text, (0.5, level), style.clone())])?;
    }
    dials(&mut chart, seeds, Variant::All, "all residual blocks", RGBColor(183, 43, 29))?;
    dials(&mut chart, seeds, Variant::Up, "up blocks", RGBColor(34, 57, 104))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14, &INK))
        .draw()?;
    root.present()?;
    Ok(())
}

/// One policy's line.
fn dials<'a>(
    chart: &mut Chart<'a>,
    seeds: &[Seed],
    variant: Variant,
    name: &str,
    colour: RGBColor,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let dials = &seeds[0].of(variant).losses.owned;
    let points = dials.iter().enumerate().map(|(k, at)| {
        let each: Vec<f64> = seeds.iter().map(|s| s.of(variant).losses.owned[k].loss).collect();
        (at.dial, spread(&each).0)
    });
    chart
        .draw_series(LineSeries::new(points, colour.stroke_width(3)))?
        .label(format!("region in {name}"))
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
    let dots = seeds.iter().flat_map(|seed| &seed.of(variant).losses.owned);
    chart.draw_series(dots.map(|at| Circle::new((at.dial, at.loss), 3, colour.filled())))?;
    Ok(())
}
