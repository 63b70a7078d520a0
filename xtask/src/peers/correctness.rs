//! Norms of single samples against the truth, for one layer of each kind.
//!
//! The truth is each sample by itself through PyTorch's autograd, in double precision.

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

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
    // One program of each side for all that it is asked: Python starts more slowly than it checks.
    let mut workers = Workers { setting, ours: None, python: None };
    export(&mut workers, kinds, &bar)?;
    let truths: Vec<Vec<f64>> = norms(&mut workers, Side::Python, "truth", kinds, &bar)?
        .into_iter()
        .map(|truth| truth.map_err(anyhow::Error::msg).context("the truth"))
        .collect::<Result<_>>()?;
    let mut checked: Vec<Checked> =
        kinds.iter().map(|kind| Checked { kind: kind.name.clone(), errors: Vec::new() }).collect();
    for peer in &peers {
        let all = norms(&mut workers, peer.side, peer.method, kinds, &bar)?;
        for ((checked, norms), truth) in checked.iter_mut().zip(all).zip(&truths) {
            checked.errors.push(norms.map(|norms| distance(&norms, truth)));
        }
    }
    bar.finish_and_clear();
    Ok(checked)
}

/// A program of each side; one that ended is started anew.
struct Workers<'a> {
    setting: &'a Setting,
    ours: Option<Worker>,
    python: Option<Worker>,
}

impl Workers<'_> {
    fn of(&mut self, side: Side) -> Result<&mut Worker> {
        let slot = match side {
            Side::Ours => &mut self.ours,
            Side::Python => &mut self.python,
        };
        if slot.as_mut().is_some_and(|worker| !worker.alive()) {
            *slot = None;
        }
        let start = || Worker::start(self.setting, side, &format!("norms-{side:?}"), 1);
        Ok(match slot {
            Some(worker) => worker,
            None => slot.insert(start()?),
        })
    }
}

fn file(setting: &Setting, kind: usize) -> PathBuf {
    setting.folder.join(format!("kind-{kind}.safetensors"))
}

fn export(workers: &mut Workers, kinds: &[&Workload], bar: &ProgressBar) -> Result<()> {
    for (at, kind) in kinds.iter().enumerate() {
        let (setting, file) = (workers.setting, file(workers.setting, at));
        let ours = workers.of(Side::Ours)?;
        ours.setup(setting, kind, "plain", &file).with_context(|| kind.name.clone())?;
        ours.ask(&json!({ "do": "export", "file": file }))?;
        bar.inc(1);
    }
    Ok(())
}

/// A participant's squared norms of every kind, or what it said instead.
fn norms(
    workers: &mut Workers,
    side: Side,
    method: &str,
    kinds: &[&Workload],
    bar: &ProgressBar,
) -> Result<Vec<Result<Vec<f64>, String>>> {
    if bar.is_hidden() {
        println!("norms of {method}");
    }
    let each = kinds.iter().enumerate().map(|(at, kind)| {
        bar.set_message(format!("{method}: {}", kind.name));
        let (setting, file) = (workers.setting, file(workers.setting, at));
        let worker = workers.of(side)?;
        let setup = worker.setup(setting, kind, method, &file);
        let norms = setup.and_then(|()| worker.numbers(&json!({ "do": "norms" }), "sq_norm"));
        bar.inc(1);
        Ok(norms.map_err(|mistake| format!("{mistake:#}")))
    });
    each.collect()
}
