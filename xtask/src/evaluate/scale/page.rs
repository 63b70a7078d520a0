//! What was measured, as a page and as bars.

use std::fmt::Write;

use super::{LEN, Measured, TOP};
use crate::evaluate::chart::Interval;
use crate::evaluate::stamp::Stamp;

/// Median, and the range it lies in.
struct Spread([f64; 3]);

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self([sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]])
    }

    fn cell(&self) -> String {
        let [median, low, high] = self.0;
        format!("{median:.2} ({low:.2} … {high:.2})")
    }
}

pub fn write(measured: &[Measured], samples: u64, blocks: u64) -> String {
    let mut page = format!(
        "# A top-{TOP} query over all samples\n\n{samples} samples × {blocks} blocks × {LEN} \
         numbers, invented (`cargo xtask evaluate scale --samples {samples} --blocks {blocks}`): \
         each sample has a size of its own, over two orders of magnitude, and shares a part of its \
         direction with a thousandth of the others. Speeds are medians with their range; *from \
         disk*, the tables were taken out of the system's cache before each run; *from memory* is \
         one block's table that was just read.\n\n"
    );
    page += "| | ";
    page += &measured.iter().map(|it| it.precision.name()).collect::<Vec<_>>().join(" | ");
    page += &format!(" |\n|---|{}\n", "---|".repeat(measured.len()));
    let mut row = |name: &str, cell: &dyn Fn(&Measured) -> String| {
        let cells: Vec<String> = measured.iter().map(cell).collect();
        writeln!(page, "| {name} | {} |", cells.join(" | ")).expect("strings take everything");
    };
    let speed = |values: &[f64]| Spread::of(values).cell();
    row("tables, GB", &|it| format!("{:.2}", it.bytes as f64 / 1e9));
    row("query from disk, s", &|it| speed(&it.seconds));
    row("query from disk, GB/s", &|it| speed(&it.cold[2]));
    row("plain reading from disk, one thread, GB/s", &|it| speed(&it.cold[0]));
    row("plain reading from disk, four threads, GB/s", &|it| speed(&it.cold[1]));
    row("query from memory, GB/s", &|it| speed(&it.warm[1]));
    row("plain reading from memory, one thread, GB/s", &|it| speed(&it.warm[0]));
    row("query's peak resident memory, MiB", &|it| {
        format!("{:.0}", it.peak_bytes as f64 / f64::from(1 << 20))
    });
    row("score error (RMS over RMS of all scores)", &|it| format!("{:.2e}", it.loss.error));
    row("largest relative error of a top score", &|it| format!("{:.2e}", it.loss.top_error));
    row(&format!("of the top {TOP} by f32, found"), &|it| it.loss.overlap.to_string());
    row("load of the machine, before and after", &|it| it.load.join(", "));
    page += "\nThe query's own two threads are part of the load. Where it is well above 2, something \
             else ran and the speeds are provisional.\n";
    page += &Stamp::now().line("");
    page
}

pub fn bars(measured: &[Measured]) -> Vec<Interval> {
    let bar = |name: String, values: &[f64], strong| {
        let [value, low, high] = Spread::of(values).0;
        Interval { label: name, value, interval: low..high, strong }
    };
    let of = |it: &Measured| {
        let name = it.precision.name();
        vec![
            bar(format!("{name}, query from disk"), &it.cold[2], true),
            bar(format!("{name}, reading from disk, 1 thread"), &it.cold[0], false),
            bar(format!("{name}, reading from disk, 4 threads"), &it.cold[1], false),
            bar(format!("{name}, query from memory"), &it.warm[1], true),
            bar(format!("{name}, reading from memory"), &it.warm[0], false),
        ]
    };
    measured.iter().flat_map(of).collect()
}
