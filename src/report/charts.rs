//! Drawings, as inline SVG.

use std::fmt::Write;

use super::html::escape;

/// A heat map: rows of values in `0..=1` of their column's total, darker for more, with the
/// percentage written into each cell.
pub struct HeatMap<'a> {
    /// Names of the rows.
    pub rows: &'a [String],
    /// Names of the columns.
    pub columns: &'a [String],
    /// `[rows, columns]`; each column is normalised to its sum.
    pub values: &'a [f64],
    /// Rows printed in the colour of ownership.
    pub owned: &'a [bool],
}

impl HeatMap<'_> {
    const CELL: [usize; 2] = [62, 25];
    const LEFT: usize = 96;
    const TOP: usize = 60;

    /// The picture.
    pub fn svg(&self) -> String {
        let columns = self.columns.len();
        let totals: Vec<f64> =
            (0..columns).map(|c| self.values.iter().skip(c).step_by(columns).sum()).collect();
        let shares: Vec<f64> = (self.values.iter().enumerate())
            .map(|(at, value)| value / totals[at % columns].max(f64::MIN_POSITIVE))
            .collect();
        let top = shares.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let width = Self::LEFT + columns * Self::CELL[0] + 40;
        let height = Self::TOP + self.rows.len() * Self::CELL[1] + 4;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width} {height}\" width={width} font-family=\"system-ui\" \
             font-size=12>"
        );
        for (c, name) in self.columns.iter().enumerate() {
            let (x, y) = (Self::LEFT + c * Self::CELL[0] + Self::CELL[0] / 2, Self::TOP - 8);
            let turn = format!("rotate(-30 {x} {y})");
            let name = escape(name);
            svg += &format!("<text x={x} y={y} transform=\"{turn}\" fill=#6b6f7d>{name}</text>");
        }
        for (r, shares) in shares.chunks_exact(columns.max(1)).enumerate() {
            svg += &self.row(r, shares, top);
        }
        svg + "</svg>"
    }

    fn row(&self, r: usize, shares: &[f64], top: f64) -> String {
        let [wide, high] = Self::CELL;
        let (y, fill) = (Self::TOP + r * high, if self.owned[r] { "#b72b1d" } else { "#1c1f2b" });
        let (base, end) = (y + 16, Self::LEFT - 10);
        let name = escape(&self.rows[r]);
        let mut svg = format!("<text x={end} y={base} text-anchor=end fill={fill}>{name}</text>");
        for (c, share) in shares.iter().enumerate() {
            let (x, shade) = (Self::LEFT + c * wide, colour(share / top, self.owned[r]));
            let ink = if share / top > 0.25 { "#fff" } else { "#1c1f2b" };
            svg += &format!(
                "<rect x={x} y={y} width={} height={} rx=4 fill=\"{shade}\"/>\
                 <text x={} y={base} text-anchor=middle font-size=11 fill={ink}>{:.1}</text>",
                wide - 2,
                high - 2,
                x + wide / 2 - 1,
                100.0 * share
            );
        }
        svg
    }
}

/// From paper to ink, or to the colour of ownership.
fn colour(share: f64, owned: bool) -> String {
    let (from, to) =
        ([243.0, 240.0, 232.0], if owned { [183.0, 43.0, 29.0] } else { [34.0, 57.0, 104.0] });
    let mix: Vec<String> = (0..3)
        .map(|c| format!("{:.0}", from[c] + (to[c] - from[c]) * share.clamp(0.0, 1.0).sqrt()))
        .collect();
    format!("rgb({})", mix.join(","))
}

/// A bar with what its value may be off by.
pub struct Bar {
    /// What it stands for.
    pub name: String,
    /// Its length; negative ones go to the left.
    pub value: f64,
    /// Drawn as a whisker to both sides of the end.
    pub deviation: f64,
}

/// Horizontal bars from a common zero, each with its value.
pub fn bars(bars: &[Bar]) -> String {
    let [left, wide, high_each, right] = [190.0, 380.0, 22.0, 90.0];
    let reach =
        |sign: f64| bars.iter().map(|it| sign * it.value + it.deviation).fold(0.0, f64::max);
    let (low, high) = (reach(-1.0), reach(1.0));
    // Nothing but zeros has no extent.
    let scale = if low + high > 0.0 { wide / (low + high) } else { 0.0 };
    let at = |value: f64| left + (value + low) * scale;
    let (width, height) = (left + wide + right, bars.len() as f64 * high_each + 6.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width={width} font-family=\"system-ui\" font-size=12>"
    );
    for (row, bar) in bars.iter().enumerate() {
        let (y, middle) = (row as f64 * high_each + 3.0, row as f64 * high_each + high_each / 2.0);
        let (from, to) = (at(bar.value.min(0.0)), at(bar.value.max(0.0)));
        let fill = if bar.value < 0.0 { "#b72b1d" } else { "#223968" };
        let (name, base) = (escape(&bar.name), middle + 4.0);
        svg += &format!(
            "<text x={} y={base} text-anchor=end fill=#1c1f2b>{name}</text>\
             <rect x={from:.1} y={y} width={:.1} height={} rx=3 fill=\"{fill}\"/>\
             <line x1={:.1} x2={:.1} y1={middle} y2={middle} stroke=#6b6f7d />\
             <text x={} y={base} fill=#6b6f7d>{:.4}</text>",
            left - 10.0,
            to - from,
            high_each - 6.0,
            at(bar.value - bar.deviation),
            at(bar.value + bar.deviation),
            left + wide + 8.0,
            bar.value,
        );
    }
    svg + "</svg>"
}

/// A line of a plot.
pub struct Line<'a> {
    /// What it shows, for the legend.
    pub name: &'a str,
    /// Any colour of CSS.
    pub colour: &'a str,
    /// `(x, y)`, in order.
    pub points: Vec<(f64, f64)>,
}

/// Width and height of a plot.
const SIZE: [f64; 2] = [560.0, 270.0];
/// Room around its frame: top, right, bottom, left.
const PAD: [f64; 4] = [14.0, 16.0, 40.0, 58.0];

/// Where values lie in the frame.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
}

impl Frame {
    /// Around all points; none when there is no point.
    fn around(lines: &[Line], log: bool) -> Option<Self> {
        let points = || lines.iter().flat_map(|line| &line.points);
        points().next()?;
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
            if high > low { (low, high) } else { (low - 0.5, low + 0.5) }
        };
        let scale = |y: f64| if log { y.max(1e-9).log10() } else { y };
        let x = bounds(&mut points().map(|point| point.0));
        let y = bounds(&mut points().map(|point| scale(point.1)));
        Some(Self { x, y, log })
    }

    fn x_at(&self, x: f64) -> f64 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0);
        PAD[3] + share * (SIZE[0] - PAD[1] - PAD[3])
    }

    fn y_at(&self, y: f64) -> f64 {
        let y = if self.log { y.max(1e-9).log10() } else { y };
        let share = (y - self.y.0) / (self.y.1 - self.y.0);
        SIZE[1] - PAD[2] - share * (SIZE[1] - PAD[0] - PAD[2])
    }

    /// Grid lines with their values, five each way.
    fn grid(&self) -> String {
        let mut svg = String::new();
        for k in 0..=4 {
            let share = f64::from(k) / 4.0;
            let x = self.x.0 + (self.x.1 - self.x.0) * share;
            let y = self.y.0 + (self.y.1 - self.y.0) * share;
            let y = if self.log { 10f64.powf(y) } else { y };
            write!(
                svg,
                "<line x1={} x2={} y1={2:.1} y2={2:.1} stroke=#e5e1d6 />\
                 <text x={3} y={4:.1} text-anchor=end>{y:.3}</text>\
                 <text x={5:.1} y={6} text-anchor=middle>{x}</text>",
                PAD[3],
                SIZE[0] - PAD[1],
                self.y_at(y),
                PAD[3] - 8.0,
                self.y_at(y) + 4.0,
                self.x_at(x),
                SIZE[1] - PAD[2] + 18.0,
                x = round(x),
            )
            .expect("a string takes any text");
        }
        svg
    }
}

/// Lines over a common frame, with named axes; `log` makes the vertical axis logarithmic.
pub fn lines(lines: &[Line], axes: [&str; 2], log: bool) -> String {
    let Some(frame) = Frame::around(lines, log) else { return String::new() };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {0} {1}\" width={0} font-family=\"system-ui\" font-size=12 \
         fill=#6b6f7d>{2}",
        SIZE[0],
        SIZE[1],
        frame.grid()
    );
    for (k, line) in lines.iter().enumerate() {
        let path: Vec<String> = (line.points.iter())
            .map(|&(x, y)| format!("{:.1},{:.1}", frame.x_at(x), frame.y_at(y)))
            .collect();
        write!(
            svg,
            "<polyline points=\"{}\" fill=none stroke=\"{1}\" stroke-width=2 />\
             <text x={2} y={3} text-anchor=end fill=\"{1}\">{4}</text>",
            path.join(" "),
            line.colour,
            SIZE[0] - PAD[1],
            PAD[0] + 4.0 + 16.0 * k as f64,
            escape(line.name),
        )
        .expect("a string takes any text");
    }
    let (middle, bottom) = ((SIZE[0] + PAD[3]) / 2.0, SIZE[1] - 6.0);
    let (across, up) = (escape(axes[0]), escape(axes[1]));
    let turn = format!("translate(14 {}) rotate(-90)", SIZE[1] / 2.0 - 10.0);
    svg + &format!(
        "<text x={middle} y={bottom} text-anchor=middle>{across}</text>\
         <text transform=\"{turn}\" text-anchor=middle>{up}</text></svg>"
    )
}

/// To three digits, so that axis labels stay short.
fn round(value: f64) -> f64 {
    let digits = 10f64.powi(2 - value.abs().max(1e-9).log10().floor() as i32);
    (value * digits).round() / digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_of_nothing_are_numbers() {
        let none = |name: &str| Bar { name: name.into(), value: 0.0, deviation: 0.0 };
        let drawn = bars(&[none("up"), none("down")]);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
