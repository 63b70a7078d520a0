//! The pictures of the protocols that retrain.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const INK: RGBColor = RGBColor(28, 31, 43);
const SOFT: RGBColor = RGBColor(125, 129, 143);
const STRONG: RGBColor = RGBColor(183, 43, 29);
const COLOURS: [RGBColor; 5] =
    [STRONG, RGBColor(34, 57, 104), RGBColor(45, 125, 95), RGBColor(190, 130, 20), SOFT];

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A value with its interval, a line of the picture.
pub struct Interval {
    pub label: String,
    pub value: f64,
    pub interval: Range<f64>,
    /// Drawn in colour.
    pub strong: bool,
}

/// Values at some places, with their intervals.
pub struct Line {
    pub label: String,
    /// `(x, y, interval of y)`.
    pub points: Vec<(f64, f64, Range<f64>)>,
}

/// Draws intervals one under the other.
pub fn intervals(path: &Path, axis: &str, rows: &[Interval]) -> Result<()> {
    kept(path, draw_intervals(path, axis, rows))
}

/// Draws lines; `axes` are the names of x and y.
pub fn lines(path: &Path, axes: [&str; 2], lines: &[Line]) -> Result<()> {
    kept(path, draw_lines(path, axes, lines))
}

/// Draws points with their names; `axes` are the names of x and y.
pub fn scatter(path: &Path, axes: [&str; 2], points: &[((f64, f64), &String)]) -> Result<()> {
    kept(path, draw_scatter(path, axes, points))
}

/// Plotters' errors borrow the drawing, so they are kept as text.
fn kept(path: &Path, drawn: Drawn) -> Result<()> {
    drawn.map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

fn draw_intervals(path: &Path, axis: &str, rows: &[Interval]) -> Drawn {
    let height = 90 + 24 * rows.len() as u32;
    let root = SVGBackend::new(path, (860, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (low, high) = bounds(rows.iter().flat_map(|row| [row.interval.start, row.interval.end]));
    let mut chart = ChartBuilder::on(&root)
        .margin(18)
        .margin_left(340)
        .x_label_area_size(42)
        .build_cartesian_2d(low.min(0.0)..high, rows.len() as f64 - 0.5..-0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(0)
        .x_desc(axis)
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    let style = ("sans-serif", 14, &INK).into_text_style(&root);
    let style = style.pos(Pos::new(HPos::Right, VPos::Center));
    for (k, row) in rows.iter().enumerate() {
        let (y, colour) = (k as f64, if row.strong { STRONG } else { SOFT });
        let ends = [(row.interval.start, y), (row.interval.end, y)];
        chart.draw_series(LineSeries::new(ends, colour.stroke_width(2)))?;
        chart.draw_series([Circle::new((row.value, y), 4, colour.filled())])?;
        let (_, y) = chart.backend_coord(&(0.0, y));
        root.draw(&Text::new(row.label.clone(), (330, y), style.clone()))?;
    }
    root.present()?;
    Ok(())
}

fn draw_lines(path: &Path, axes: [&str; 2], lines: &[Line]) -> Drawn {
    let root = SVGBackend::new(path, (820, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let all = || lines.iter().flat_map(|line| &line.points);
    let mut chart = plane(
        &root,
        axes,
        [bounds(all().map(|at| at.0)), bounds(all().flat_map(|at| [at.2.start, at.2.end]))],
    )?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let points = line.points.iter().map(|at| (at.0, at.1));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(3)))?
            .label(line.label.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
        for (x, y, interval) in &line.points {
            let ends = [(*x, interval.start), (*x, interval.end)];
            chart.draw_series(LineSeries::new(ends, colour.stroke_width(1)))?;
            chart.draw_series([Circle::new((*x, *y), 3, colour.filled())])?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14, &INK))
        .draw()?;
    root.present()?;
    Ok(())
}

fn draw_scatter(path: &Path, axes: [&str; 2], points: &[((f64, f64), &String)]) -> Drawn {
    let root = SVGBackend::new(path, (820, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let spans = [bounds(points.iter().map(|at| at.0.0)), bounds(points.iter().map(|at| at.0.1))];
    let mut chart = plane(&root, axes, spans)?;
    let style = ("sans-serif", 12, &SOFT).into_text_style(&root);
    let style = style.pos(Pos::new(HPos::Center, VPos::Bottom));
    for (at, name) in points {
        chart.draw_series([Circle::new(*at, 4, STRONG.filled())])?;
        let (x, y) = chart.backend_coord(at);
        root.draw(&Text::new((*name).clone(), (x, y - 6), style.clone()))?;
    }
    root.present()?;
    Ok(())
}

fn plane<'a>(
    root: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    axes: [&str; 2],
    [x, y]: [(f64, f64); 2],
) -> Result<Chart<'a>, Box<dyn std::error::Error>>
where
    SVGBackend<'a>: DrawingBackend<ErrorType = std::io::Error>,
{
    let mut chart = ChartBuilder::on(root)
        .margin(18)
        .x_label_area_size(42)
        .y_label_area_size(72)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axes[0])
        .y_desc(axes[1])
        .label_style(("sans-serif", 14, &INK))
        .draw()?;
    Ok(chart)
}

/// Least and greatest with some room; never an empty span.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = 0.08 * (high - low).max(1e-9);
    (low - room, high + room)
}
