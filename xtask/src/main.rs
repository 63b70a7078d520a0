//! The project's own tasks: `cargo xtask <command>`.

mod data;
mod shell;

use clap::Parser;

/// Tasks of the gradroute workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Render data/glyphs.png from the typefaces listed in data/typefaces.toml.
    Data,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Data => data::render(),
    }
}
