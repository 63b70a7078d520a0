//! `cargo xtask test`: everything a change has to pass, step by step, stopping at the first failure.
//!
//! Every step builds in the release profile, so that they share what is built.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::candle_kernels::{self, Share};
use crate::{kernels, shell};

/// One step: its name, cargo's arguments, and the environment variables it needs.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

const STEPS: &[Step] = &[
    step("format", &["fmt", "--all", "--check"]),
    Step {
        name: "lints",
        arguments: &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"],
        // Nothing is linked: the kernels would be compiled for the sake of an empty table.
        variables: &[("NVCC", "off")],
    },
    Step {
        name: "documentation",
        // With the examples, and so with the features that tests and lints have: what these checked is not
        // checked again. Not `candle-cuda`, which would need a CUDA toolkit.
        arguments: &[
            "doc",
            "--release",
            "--workspace",
            "--no-deps",
            "--lib",
            "--bin",
            "xtask",
            "--examples",
        ],
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step {
        name: "no features",
        arguments: &[
            "clippy",
            "--release",
            // As the next step, so that they share the dependencies' features.
            "--package",
            "gradroute",
            "--lib",
            "--no-default-features",
            "--",
            "-D",
            "warnings",
        ],
        // As above.
        variables: &[("NVCC", "off")],
    },
    step("candle on CUDA", &["xtask", "candle-cuda"]),
    step("tests", &["test", "--release", "--workspace"]),
    // The shipped kernels through the driver's own calls, executed by softcuda.
    Step {
        name: "device tests",
        arguments: &["softcuda", "test", "--release", "--test", "cuda_probe"],
        variables: &[("GRADROUTE_REQUIRE_GPU", "1")],
    },
    // The op suite of every backend, here on the kernels.
    Step {
        name: "ops on device",
        arguments: &["softcuda", "test", "--release", "--test", "ops", "--", "cuda_"],
        variables: &[("GRADROUTE_REQUIRE_GPU", "1")],
    },
    // The plans on the caller's own streams and buffers. Launches return before they are done, as on
    // hardware, so that what is freed too early is found.
    Step {
        name: "runs on device",
        arguments: &["softcuda", "test", "--release", "--test", "cuda_run"],
        variables: &[("GRADROUTE_REQUIRE_GPU", "1"), ("CUDA_LAUNCH_BLOCKING", "0")],
    },
    // What they cost, against the committed table.
    Step {
        name: "counts",
        arguments: &["softcuda", "test", "--release", "--test", "cuda_counts"],
        variables: &[("GRADROUTE_REQUIRE_GPU", "1"), ("SOFTCUDA_COUNTERS", COUNTERS)],
    },
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
    Step { name, arguments, variables: &[] }
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
        // For the comparison of the generated parameter structs, which is skipped without.
        if let Some(folder) = kernels::libclang() {
            command.env("LIBCLANG_PATH", folder);
        }
        Ok(command)
    }
}
