//! The project's own tasks: `cargo xtask <command>`.

mod candle_kernels;
mod cudarc;
mod data;
mod disassembly;
mod evaluate;
mod gates;
mod gpu;
mod kernels;
mod machine;
mod mutants;
mod no_toolkit;
mod peers;
mod python;
#[allow(dead_code)]
#[path = "../../examples/glyph_diffusion/sheet.rs"]
mod sheet;
mod shell;
mod test;
mod verify;

use clap::Parser;

/// Tasks of the gradroute workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Check format, lints and documentation, run all tests and the example's quick form.
    Test,
    /// Fetch the CUDA compiler into .tools/ and build the kernels with it.
    Kernels,
    /// Fetch the sources of candle's CUDA kernels into .tools/ and compile them to PTX, for
    /// softcuda's tests.
    CandleKernels,
    /// Run the driver-level unit tests of cudarc, as published, on softcuda.
    Cudarc {
        /// Those that measure time, too: they need an idle machine, and pass by chance.
        #[arg(long)]
        all: bool,
    },
    /// Check what the compiler made of the kernels: the table of what they take, and the main loops of
    /// GEMM kernels in the disassembly.
    Gates {
        /// Write the table anew.
        #[arg(long)]
        bless: bool,
    },
    /// On a machine with a GPU: run all device tests, compute-sanitizer and benches, and write one report.
    Gpu {
        /// Minutes that each check may take.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        limit_minutes: u64,
    },
    /// Get one line of a kernel wrong after the other, as xtask/mutants.toml says: a test must go red on
    /// each. Takes an hour or more; goes on where it was stopped.
    Mutants {
        /// Only those whose name holds this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Prove small launches of the kernels free of races with sentryward, read their machine code with
    /// cuxray, and compare with the table.
    Verify {
        /// Only launches of kernels whose name holds this, and no machine code.
        #[arg(long)]
        only: Option<String>,
        /// Write the table anew.
        #[arg(long)]
        bless: bool,
    },
    /// Render data/glyphs.png from the typefaces listed in data/typefaces.toml.
    Data,
    /// Run the same work by us and by the frameworks we are measured against, installed from PyPI
    /// into .tools/peers (about 6 GB), and write table and picture to benches/record/.
    Peers(peers::Arguments),
    /// Measure a claim over several seeds and write table and picture to benches/record/.
    #[command(subcommand)]
    Evaluate(evaluate::Evaluation),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Test => test::run(),
        Task::Kernels => kernels::build(),
        Task::CandleKernels => candle_kernels::compile(candle_kernels::Share::All),
        Task::Cudarc { all } => cudarc::run(all),
        Task::Gates { bless } => gates::run(bless),
        Task::Gpu { limit_minutes } => gpu::run(limit_minutes),
        Task::Mutants { only } => mutants::run(only.as_deref()),
        Task::Verify { only, bless } => verify::run(only.as_deref(), bless),
        Task::Data => data::render(),
        Task::Peers(arguments) => peers::run(&arguments),
        Task::Evaluate(evaluation) => evaluation.run(),
    }
}
