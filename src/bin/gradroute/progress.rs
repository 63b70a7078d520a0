//! Bars for work that takes long.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of steps, `what` they are; none if nothing is to be said.
pub fn bar(quiet: bool, what: &str) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {msg}, {elapsed}");
    bar.set_style(style.expect("a valid template"));
    bar.set_message(what.to_owned());
    bar
}

/// Moves it: steps done and in all.
pub fn told(bar: &ProgressBar) -> impl FnMut(usize, usize) {
    |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }
}
