//! Norms of single samples against the truth, for one layer of each kind.
//!
//! The truth is each sample by itself through PyTorch's autograd, in double precision.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::Setting;
use super::participants::{Participant, Side};
use super::statistics::distance;
use super::worker::Worker;
use super::workloads::Workload;

/// A kind of layer: its name, and of each checked participant the largest relative error of a
/// sample's norm, or why there is none.
pub struct Checked {
    pub kind: String,
    pub errors: Vec<Result<f64, String>>,
}

/// The participants that are checked.
pub fn participants(setting: &Setting) -> Vec<Participant> {
    setting.participants.iter().filter(|peer| peer.checked).copied().collect()
}

/// Asks everybody for the norms of every kind.
pub fn measure(setting: &Setting, kinds: &[&Workload]) -> Result<Vec<Checked>> {
    let peers = participants(setting);
    let bar = ProgressBar::new(kinds.len() as u64 * (peers.len() as u64 + 2));
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} · {wide_msg}")?);
    // The weights and inputs of all kinds, then the truth of all, then each participant's turn:
    // a Python process starts more slowly than it checks.
    export(setting, kinds, &bar)?;
    let truths: Vec<Vec<f64>> = norms(setting, Side::Python, "truth", kinds, &bar)?
        .into_iter()
        .map(|truth| truth.map_err(anyhow::Error::msg).context("the truth"))
        .collect::<Result<_>>()?;
    let mut checked: Vec<Checked> =
        kinds.iter().map(|kind| Checked { kind: kind.name.clone(), errors: Vec::new() }).collect();
    for peer in &peers {
        let all = norms(setting, peer.side, peer.method, kinds, &bar)?;
        for ((checked, norms), truth) in checked.iter_mut().zip(all).zip(&truths) {
            checked.errors.push(norms.map(|norms| distance(&norms, truth)));
        }
    }
    bar.finish_and_clear();
    Ok(checked)
}

fn file(setting: &Setting, kind: usize) -> std::path::PathBuf {
    setting.folder.join(format!("kind-{kind}.safetensors"))
}

fn export(setting: &Setting, kinds: &[&Workload], bar: &ProgressBar) -> Result<()> {
    let mut worker = Worker::start(setting, Side::Ours, "ours-export", 1)?;
    for (at, kind) in kinds.iter().enumerate() {
        let file = file(setting, at);
        worker.setup(setting, kind, "plain", &file).with_context(|| kind.name.clone())?;
        worker.ask(&json!({ "do": "export", "file": file }))?;
        bar.inc(1);
    }
    Ok(())
}

/// A participant's squared norms of every kind, or what it said instead.
fn norms(
    setting: &Setting,
    side: Side,
    method: &str,
    kinds: &[&Workload],
    bar: &ProgressBar,
) -> Result<Vec<Result<Vec<f64>, String>>> {
    if bar.is_hidden() {
        println!("norms of {method}");
    }
    let request: Value = json!({ "do": "norms" });
    let mut worker = None;
    let each = kinds.iter().enumerate().map(|(at, kind)| {
        bar.set_message(format!("{method}: {}", kind.name));
        let mut going = match worker.take() {
            Some(going) => going,
            None => Worker::start(setting, side, &format!("norms-{method}"), 1)?,
        };
        let setup = going.setup(setting, kind, method, &file(setting, at));
        let norms = setup.and_then(|()| going.numbers(&request, "sq_norm"));
        // A program that ended is started anew for the next kind.
        if going.alive() {
            worker = Some(going);
        }
        bar.inc(1);
        Ok(norms.map_err(|mistake| format!("{mistake:#}")))
    });
    each.collect()
}
