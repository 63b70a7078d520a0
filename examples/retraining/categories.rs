//! Retraining without a category: does the sum of its samples' scores say what that does?

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::lds::{self, Halves, VALIDATION};
use crate::scores::{self, Method, Scores};
use crate::stamp::Stamp;
use crate::task::Task;
use crate::{amount, store, subset};

#[derive(Serialize)]
struct Outcome {
    setup: serde_json::Value,
    /// That chose the damping.
    halves: amount::Halves,
    seeds: u64,
    /// See [`VALIDATION`].
    validation: usize,
    measured: Stamp,
    names: Vec<String>,
    /// Training samples of each category.
    sizes: Vec<usize>,
    /// Category of each query.
    queries: Vec<usize>,
    /// Rise of each query's loss without a category, `[seeds][categories][queries]`.
    rise: Vec<Vec<Vec<f64>>>,
    shares: Vec<Shares>,
}

#[derive(Serialize)]
struct Shares {
    method: Method,
    /// Sum of the category's scores for each query, `[categories][queries]`, or one number that asks none.
    share: Vec<Vec<f64>>,
}

/// Measures and writes `categories.json`.
pub fn run(task: &dyn Task, out: &Path, halves: &Halves, seeds: u64) -> Result<()> {
    let categories = task.categories();
    let count = categories.names.len();
    let of = |category: usize| -> Vec<usize> {
        (0..task.samples()).filter(|&n| categories.samples[n] == category).collect()
    };
    let members: Vec<Vec<usize>> = (0..count).map(of).collect();
    let rise = |seed: u64| -> Result<Vec<Vec<f64>>> {
        let path = out.join(format!("categories-{seed}.f32"));
        // The first row is the run with everybody.
        let losses = store::rows(&path, task.queries(), 1 + count, |row| {
            let absent = row.checked_sub(1).map_or(&[][..], |category| &members[category]);
            task.retrain(&subset::without(task.samples(), absent), seed)
        })?;
        let rise = |row: &Vec<f32>| {
            row.iter().zip(&losses[0]).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
        };
        Ok(losses[1..].iter().map(rise).collect())
    };
    let rise = (1..=seeds).map(rise).collect::<Result<_>>()?;

    let mut shares = Vec::new();
    for evidence in task.record()? {
        let all = scores::all(&evidence)?;
        let mut names: Vec<&str> = all.iter().map(|it| it.method.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let Some(chosen) = lds::chosen(&all, halves, &evidence.storage, name) else { continue };
            let method = &chosen.method;
            let share = members.iter().map(|members| sums(chosen, members)).collect();
            shares.push(Shares { method: method.clone(), share });
            let held_out = scores::held_out(&evidence, method, &members)?;
            shares.extend(held_out.into_iter().map(|(method, share)| Shares { method, share }));
        }
    }
    let outcome = Outcome {
        setup: task.setup(),
        halves: halves.amount,
        seeds,
        validation: VALIDATION,
        measured: Stamp::now(),
        sizes: members.iter().map(Vec::len).collect(),
        names: categories.names.clone(),
        queries: categories.queries.clone(),
        rise,
        shares,
    };
    store::write(&out.join("categories.json"), &outcome)
}

/// Sum of the members' scores for each query.
fn sums(scores: &Scores, members: &[usize]) -> Vec<f64> {
    scores.values.iter().map(|values| members.iter().map(|&n| values[n]).sum()).collect()
}
