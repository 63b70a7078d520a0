//! `cargo xtask peers --growth`: what our passes cost as the problem grows, and as less of it trains.
//!
//! One linear layer; one of its sizes runs through a range while the others stay. What a cost grows
//! with is the slope of its logarithm.

use std::fmt::Write;
use std::path::Path;
use std::thread::sleep;

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use serde_json::{Value, json};

use super::Setting;
use super::participants::Participant;
use super::statistics::{Spread, ratios};
use super::timing::{REST, counted};
use super::worker::{Pass, begin};
use super::workloads::{Group, Workload};

/// A linear layer's sizes.
#[derive(Clone, Copy)]
struct Sizes {
    samples: usize,
    rows: usize,
    channels: usize,
    /// Numbers of a sketch.
    width: usize,
    /// Samples of a hundred that train.
    trained: usize,
}

const BASE: Sizes = Sizes { samples: 8, rows: 128, channels: 512, width: 256, trained: 100 };

impl Sizes {
    fn workload(self) -> Value {
        let Self { samples, rows, channels, width, trained } = self;
        json!({
            "samples": samples,
            "input": [rows, channels],
            "dx": true,
            "width": width,
            "away": 1.0 - trained as f64 / 100.0,
            "layers": [{ "kind": "linear", "inputs": channels, "outputs": channels }],
        })
    }
}

/// What grows.
struct Axis {
    name: &'static str,
    /// Of the picture.
    file: &'static str,
    values: &'static [usize],
    at: fn(usize) -> Sizes,
}

const AXES: [Axis; 5] = [
    Axis {
        name: "rows per sample",
        file: "rows",
        values: &[1, 4, 16, 64, 256, 1024],
        at: |rows| Sizes { rows, ..BASE },
    },
    Axis {
        name: "channels in and out",
        file: "channels",
        values: &[64, 128, 256, 512, 1024, 2048],
        at: |channels| Sizes { channels, ..BASE },
    },
    Axis {
        name: "samples",
        file: "samples",
        values: &[1, 2, 4, 8, 16, 32, 64],
        at: |samples| Sizes { samples, ..BASE },
    },
    Axis {
        name: "numbers of a sketch",
        file: "width",
        values: &[64, 256, 1024, 4096],
        at: |width| Sizes { width, ..BASE },
    },
    Axis {
        name: "samples that train, of 100",
        file: "trained",
        values: &[10, 50, 75, 100],
        at: |trained| Sizes { samples: 20, trained, ..BASE },
    },
];

/// Times along an axis.
pub struct Growth {
    axis: &'static Axis,
    methods: Vec<Participant>,
    /// `[values][methods][rounds]`, milliseconds.
    times: Vec<Vec<Vec<f64>>>,
}

/// Measures along every axis.
pub fn measure(setting: &Setting, threads: usize, rounds: u32) -> Result<Vec<Growth>> {
    let methods: Vec<Participant> =
        setting.participants.iter().copied().filter(Participant::has_modules).collect();
    let bar = ProgressBar::new(AXES.iter().map(|axis| axis.values.len() as u64).sum());
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} sizes · {msg} · {eta} left")?);
    let along = |axis: &'static Axis| -> Result<Growth> {
        let at = |&value: &usize| -> Result<Vec<Vec<f64>>> {
            bar.set_message(format!("{value} {}", axis.name));
            let times = one(setting, &methods, (axis.at)(value), threads, rounds);
            bar.inc(1);
            times.with_context(|| format!("{value} {}", axis.name))
        };
        let times = axis.values.iter().map(at).collect::<Result<_>>()?;
        Ok(Growth { axis, methods: methods.clone(), times })
    };
    let all = AXES.iter().map(along).collect();
    bar.finish_and_clear();
    all
}

/// One size, all methods in turn.
fn one(
    setting: &Setting,
    methods: &[Participant],
    sizes: Sizes,
    threads: usize,
    rounds: u32,
) -> Result<Vec<Vec<f64>>> {
    let whole = sizes.workload();
    let workload = Workload { name: String::new(), group: Group::Layer, trains: false, whole };
    let file = setting.folder.join("unused.safetensors");
    let start = |method| begin(setting, method, &workload, &file, threads);
    let mut workers = methods.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut times = vec![Vec::new(); methods.len()];
    // Two rounds to warm up.
    for round in 0..rounds + 2 {
        for (worker, times) in workers.iter_mut().zip(&mut times) {
            sleep(REST);
            let pass: Pass = worker.pass()?;
            if round >= 2 {
                times.push(counted(pass, threads));
            }
        }
    }
    Ok(times)
}

impl Growth {
    fn middle(&self, value: usize, method: usize) -> f64 {
        Spread::of(&self.times[value][method]).map_or(f64::NAN, |spread| spread.middle)
    }

    /// Slope of the logarithm of the time over the larger half of the sizes.
    fn exponent(&self, method: usize) -> f64 {
        let first = self.axis.values.len() / 2 - 1;
        let points = (first..self.axis.values.len())
            .map(|at| ((self.axis.values[at] as f64).ln(), self.middle(at, method).ln()));
        slope(&points.collect::<Vec<_>>())
    }

    fn section(&self, text: &mut String) -> std::fmt::Result {
        let names = self.methods.iter().map(|method| {
            let name = method.name.trim_start_matches("gradroute, ");
            if method.plain { format!("{name}, ms") } else { format!("{name}, ms | over plain") }
        });
        let names = names.collect::<Vec<_>>().join(" | ");
        let rule = "| --- ".repeat(2 * self.methods.len());
        write!(
            text,
            "\n## {0}\n\n![]({1})\n\n| {0} | {names} |\n{rule}|\n",
            self.axis.name,
            self.file()
        )?;
        for (at, value) in self.axis.values.iter().enumerate() {
            write!(text, "| {value} |")?;
            for (method, peer) in self.methods.iter().enumerate() {
                write!(text, " {:.2} |", self.middle(at, method))?;
                if !peer.plain {
                    let over = ratios(&self.times[at][method], &self.times[at][0]);
                    write!(text, " {} |", Spread::of(&over).map_or("—".into(), |o| o.cell(2)))?;
                }
            }
            writeln!(text)?;
        }
        write!(text, "| exponent |")?;
        for (method, peer) in self.methods.iter().enumerate() {
            let empty = if peer.plain { "" } else { " |" };
            write!(text, " {:.2} |{empty}", self.exponent(method))?;
        }
        writeln!(text)
    }

    fn file(&self) -> String {
        format!("growth-{}.svg", self.axis.file)
    }

    /// Draws both axes with logarithms.
    pub fn draw(&self, folder: &Path) -> Result<()> {
        let path = folder.join(self.file());
        self.drawing(&path).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
    }

    fn drawing(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        const INK: RGBColor = RGBColor(28, 31, 43);
        const COLOURS: [RGBColor; 3] =
            [RGBColor(125, 129, 143), RGBColor(183, 43, 29), RGBColor(34, 57, 104)];
        let root = SVGBackend::new(path, (620, 400)).into_drawing_area();
        root.fill(&WHITE)?;
        let values = self.axis.values;
        let all = (0..values.len()).flat_map(|at| [0, 1, 2].map(|method| self.middle(at, method)));
        let (low, high) =
            all.fold((f64::INFINITY, 0.0), |(l, h), t| (f64::min(l, t), f64::max(h, t)));
        let span = values[0] as f64 * 0.9..values[values.len() - 1] as f64 * 1.1;
        let mut chart = ChartBuilder::on(&root)
            .margin(18)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(span.log_scale(), (low / 1.3..high * 1.3).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(self.axis.name)
            .y_desc("milliseconds")
            .x_label_formatter(&|x| format!("{x}"))
            .y_label_formatter(&|y| format!("{y}"))
            .label_style(("sans-serif", 14, &INK))
            .draw()?;
        for (method, (peer, colour)) in self.methods.iter().zip(COLOURS).enumerate() {
            let points =
                values.iter().enumerate().map(|(at, &v)| (v as f64, self.middle(at, method)));
            let name = format!("{}: exponent {:.2}", peer.name, self.exponent(method));
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2))
                });
            chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 13, &INK))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// The table.
pub fn page(setting: &Setting, grown: &[Growth], threads: usize, date: &str) -> String {
    let mut text = format!(
        "# Cost as the problem grows\n\n{}, {date}, {}, {threads} thread(s). Forward and backward of one \
         linear layer by `cargo xtask peers --growth`: medians of milliseconds, and of the ratio to the \
         plain pass in the same round with quartiles. Where nothing else is said: {} samples of {} rows, \
         {} channels in and out, exact norms and {} numbers of a sketch. *Exponent*: slope of the \
         logarithm of the time over the larger half of the sizes.\n",
        crate::machine::processor(),
        setting.format.name(),
        BASE.samples,
        BASE.rows,
        BASE.channels,
        BASE.width,
    );
    grown.iter().for_each(|growth| growth.section(&mut text).expect("a string"));
    text
}

/// Of the least-squares line.
fn slope(points: &[(f64, f64)]) -> f64 {
    let mean =
        |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let products: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    products / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::participants;

    /// Times that grow with the square of the value, twice as long for the second method.
    fn squares(axis: &'static Axis) -> Growth {
        let mut methods = participants::chosen(&[]).unwrap();
        methods.retain(Participant::has_modules);
        let at =
            |&v: &usize| vec![vec![(v * v) as f64; 3], vec![(2 * v * v) as f64; 3], vec![1.0; 3]];
        Growth { axis, methods, times: axis.values.iter().map(at).collect() }
    }

    #[test]
    fn exponents_are_slopes() {
        for axis in &AXES {
            let growth = squares(axis);
            let exponents = [0, 1, 2].map(|method| growth.exponent(method));
            for (exponent, true_one) in exponents.into_iter().zip([2.0, 2.0, 0.0]) {
                assert!((exponent - true_one).abs() < 1e-9, "{}: {exponent}", axis.name);
            }
        }
    }

    #[test]
    fn table_and_picture_hold_every_size() {
        let growth = squares(&AXES[0]);
        let mut text = String::new();
        growth.section(&mut text).unwrap();
        assert_eq!(text.matches(" 2.00 (2.00–2.00) |").count(), AXES[0].values.len());
        assert!(text.contains("| exponent | 2.00 | 2.00 | | 0.00 | |"), "{text}");
        let folder = std::env::temp_dir();
        growth.draw(&folder).unwrap();
        let path = folder.join(growth.file());
        let picture = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(picture.matches("<circle").count(), 3 * AXES[0].values.len());
    }
}
