//! `cargo xtask test`: everything a change has to pass, step by step, stopping at the first failure.
//!
//! Every step builds in the release profile, so that they share what is built.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::candle_kernels::{self, Share};
use crate::{kernels, no_toolkit, shell};

/// One step: its name, cargo's arguments, and the environment variables it needs.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
    /// Whether programs are linked, and so kernels needed.
    links: bool,
}

const STEPS: &[Step] = &[
    step("format", &["fmt", "--all", "--check"]),
    // With every feature that adds code; so has the documentation, and what was checked here is not checked again.
    check(
        "lints",
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--features",
            "candle-cuda",
            "--",
            "-D",
            "warnings",
        ],
    ),
    Step {
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
        ..check(
            "documentation",
            &[
                "doc",
                "--release",
                "--workspace",
                "--no-deps",
                "--lib",
                "--bin",
                "xtask",
                "--examples",
                "--features",
                "candle-cuda",
            ],
        )
    },
    check(
        "no features",
        &[
            "clippy",
            "--release",
            "--package",
            "gradroute",
            "--lib",
            "--no-default-features",
            "--",
            "-D",
            "warnings",
        ],
    ),
    // Nothing is left out for want of the compiler and the kernels that are there by now.
    Step {
        variables: &[("GRADROUTE_REQUIRE_TOOLS", "1")],
        ..step("tests", &["test", "--release", "--workspace"])
    },
    // The shipped kernels through the driver's own calls, executed by softcuda.
    Step {
        variables: &[("GRADROUTE_REQUIRE_GPU", "1")],
        ..step("device tests", &["softcuda", "test", "--release", "--test", "cuda_probe"])
    },
    // The op suite of every backend, here on the kernels.
    Step {
        variables: &[("GRADROUTE_REQUIRE_GPU", "1")],
        ..step("ops on device", &["softcuda", "test", "--release", "--test", "ops", "--", "cuda_"])
    },
    // The plans on the caller's own streams and buffers. Launches return before they are done, as on
    // hardware, so that what is freed too early is found.
    Step {
        variables: &[("GRADROUTE_REQUIRE_GPU", "1"), ("CUDA_LAUNCH_BLOCKING", "0")],
        ..step("runs on device", &["softcuda", "test", "--release", "--test", "cuda_run"])
    },
    // What they cost, against the committed table.
    Step {
        variables: &[("GRADROUTE_REQUIRE_GPU", "1"), ("SOFTCUDA_COUNTERS", COUNTERS)],
        ..step("counts", &["softcuda", "test", "--release", "--test", "cuda_counts"])
    },
    // Nothing is timed there: every pass of the benchmark runs once, on small layers.
    step("benchmark", &["softcuda", "bench", "--profile", "release", "--bench", "cuda"]),
    // What the compiler made of the kernels.
    step("gates", &["xtask", "gates"]),
    step(
        "example",
        &["run", "--release", "--example", "glyph_diffusion", "--", "--quick", "--out", QUICK_RUN],
    ),
];

/// Where the example's quick run writes; taken away before it starts.
const QUICK_RUN: &str = "target/quick_run";
/// Where softcuda writes the counters of each launch; taken away likewise.
const COUNTERS: &str = "target/counters.json";

const fn step(name: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { name, arguments, variables: &[], links: true }
}

/// A step that links nothing.
const fn check(name: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { links: false, ..step(name, arguments) }
}

/// Runs the steps and prints how long each took.
pub fn run() -> Result<()> {
    let [quick, counters] = [QUICK_RUN, COUNTERS].map(|path| shell::root().join(path));
    if quick.exists() {
        std::fs::remove_dir_all(&quick)?;
    }
    if counters.exists() {
        std::fs::remove_file(&counters)?;
    }
    // Cargo's own folder may be elsewhere.
    std::fs::create_dir_all(counters.parent().context("a folder")?)?;
    let start = Instant::now();
    // Kernels are tested too: they need the compiler before anything is built.
    candle_kernels::compile(Share::Tests)
        .context("the CUDA compiler, and candle's kernels with it")?;
    let mut times: Vec<(&str, Duration)> = vec![("compiler", start.elapsed())];
    let mut outcome = Ok(());
    for step in STEPS {
        eprintln!("\n── {}: cargo {}", step.name, step.arguments.join(" "));
        let start = Instant::now();
        outcome = step
            .command()
            .and_then(|mut command| shell::run(&mut command))
            .with_context(|| format!("step `{}`", step.name));
        times.push((step.name, start.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    eprintln!();
    for (name, time) in times {
        eprintln!("{name:>14} {:6.1} s", time.as_secs_f64());
    }
    outcome
}

impl Step {
    fn command(&self) -> Result<Command> {
        let mut command = shell::cargo();
        match self.arguments {
            // The program that the tests' build left beside this one: cargo's alias would build it, and what it
            // needs, once more with the features that it has alone.
            ["softcuda", arguments @ ..] => {
                let softcuda = std::env::current_exe()?.with_file_name("softcuda");
                command = Command::new(softcuda);
                command.arg("cargo").args(arguments).current_dir(shell::root());
            }
            arguments => {
                command.args(arguments);
            }
        }
        command.envs(self.variables.iter().copied());
        if !self.links {
            no_toolkit::stand_in(&mut command)?;
        }
        // For the comparison of the generated parameter structs, which is skipped without.
        if let Some(folder) = kernels::libclang() {
            command.env("LIBCLANG_PATH", folder);
        }
        Ok(command)
    }
}
