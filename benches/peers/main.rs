//! Our side of `cargo xtask peers`: forward and backward passes of a workload through the routed
//! modules and the `cpu` backend, asked for and answered as JSON lines.
//!
//! `cargo xtask peers` starts this program once for each way to run a workload and asks it for
//! passes in turn with the peers' programs (`xtask/peers/worker.py`, which speaks the same lines).

mod bare;
// The example's model and data, which does more with them.
#[allow(dead_code)]
#[path = "../../examples/glyph_diffusion/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../../examples/glyph_diffusion/diffusion.rs"]
mod diffusion;
mod glyph;
#[path = "../../examples/glyph_diffusion/model.rs"]
mod model;
mod process;
mod sequence;
mod task;

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use bare::Bare;
use task::{Method, Task, Workload};

/// One line of input.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    /// Build the workload; threads are the environment's.
    Setup { workload: Workload, method: Method, dtype: task::Format },
    /// Write parameters and inputs to a safetensors file.
    Export { file: PathBuf },
    /// One forward and backward pass.
    Run,
    /// Each sample's squared gradient norm over all layers.
    Norms,
    /// Losses of so many steps of training.
    Train { steps: usize },
    /// Memory before the first pass, and at most.
    Memory,
}

/// What passes are asked of.
enum Work {
    Modules(Box<Task>),
    Ops(Box<Bare>),
}

impl Work {
    fn new(workload: &Workload, method: Method, dtype: task::Format) -> Result<Self> {
        let task = Task::new(workload, method, dtype)?;
        Ok(match method {
            Method::Bare | Method::BareTwoSided => {
                let kind = method.sketch(workload.width);
                Self::Ops(Box::new(Bare::new(workload, &task.tensors()?, kind)?))
            }
            _ => Self::Modules(Box::new(task)),
        })
    }

    /// A pass, and its loss.
    fn run(&mut self) -> Result<f32> {
        match self {
            Self::Modules(task) => Ok(task.pass()?.loss),
            Self::Ops(layer) => layer.pass(),
        }
    }

    fn modules(&self) -> Result<&Task> {
        match self {
            Self::Modules(task) => Ok(task),
            Self::Ops(_) => bail!("the ops alone have no modules"),
        }
    }
}

fn answer(line: &str, work: &mut Option<Work>) -> Result<Value> {
    let request: Request = serde_json::from_str(line)?;
    if let Request::Setup { workload, method, dtype } = request {
        *work = Some(Work::new(&workload, method, dtype)?);
        process::forget_peak();
        return Ok(json!({}));
    }
    let work = work.as_mut().context("setup comes first")?;
    match request {
        Request::Setup { .. } => unreachable!("answered above"),
        Request::Export { file } => {
            candle_core::safetensors::save(&work.modules()?.tensors()?, file)?;
            Ok(json!({}))
        }
        Request::Run => {
            let start = process::now();
            let loss = work.run()?;
            let [wall, cpu] = process::since(start);
            Ok(json!({ "wall_ms": wall, "cpu_ms": cpu, "loss": loss }))
        }
        Request::Norms => Ok(json!({ "sq_norm": work.modules()?.pass()?.sq_norm })),
        Request::Train { steps } => Ok(json!({ "losses": work.modules()?.train(steps)? })),
        Request::Memory => {
            let [before, peak] = process::memory()?;
            Ok(json!({ "before_bytes": before, "peak_bytes": peak }))
        }
    }
}

fn main() -> Result<()> {
    if std::env::args().all(|argument| argument != "--worker") {
        println!("peers: started by `cargo xtask peers`");
        return Ok(());
    }
    if let Some(library) = std::env::var_os("GRADROUTE_BLAS") {
        // SAFETY: `cargo xtask peers` hands on MKL, whose default is 32-bit integers.
        unsafe { gradroute::cpu::use_blas(library) }?;
    }
    let mut work = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let value = answer(&line, &mut work)
            .unwrap_or_else(|mistake| json!({ "error": format!("{mistake:#}") }));
        println!("{value}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
