//! The same question to engines that run SQL, and whether they give the same answer.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Asked, Precision, TOP, answer, example, make};
use crate::evaluate::stamp::Stamp;
use crate::{python, shell};

/// The engines and all they depend on.
const PINNED: &str = include_str!("../../../scale/requirements.txt");

/// The question, in the engines' words.
const SQL: &str = include_str!("../../../scale/top.sql");

/// Largest relative difference of a score: an engine adds up in another order.
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Answered {
    seconds: f64,
    top: Vec<(u64, f64)>,
}

/// The engines, by name and by the program in `xtask/scale` that asks them.
const ENGINES: [(&str, &str); 2] = [("DataFusion", "datafusion_top.py"), ("Spark", "spark_top.py")];

/// Asks all, for both precisions; fails when an engine says something else.
pub fn compare(samples: u64, blocks: u64) -> Result<String> {
    let python = install()?;
    let mut page = format!(
        "# The same question to SQL engines\n\n{samples} samples × {blocks} blocks × 256 numbers \
         (`cargo xtask evaluate scale --engines --samples {samples} --blocks {blocks}`), the \
         tables of one index as they lie:\n\n```sql\n{SQL}```\n\n`dot` is a few lines of \
         Python (xtask/scale/codes.py). DataFusion runs in the process that asks, Spark a driver \
         and two worker processes, `local-cluster[2,1,1024]`. Seconds are of one run, a cold engine included; they are no \
         comparison of speed.\n\n| tables | engine | same top {TOP}, in order | largest relative \
         difference of a score | s |\n|---|---|---|---|---|\n"
    );
    for precision in [Precision::F16, Precision::Int8] {
        let folder = make(precision, samples, blocks)?;
        let ours: Asked = example(&folder, &["ask"])?;
        let mut line = |engine: &str, difference: f64, seconds: f64| {
            let name = precision.name();
            writeln!(page, "| {name} | {engine} | yes | {difference:.1e} | {seconds:.1} |")
        };
        line("gradroute", 0.0, ours.seconds)?;
        for (engine, program) in ENGINES {
            let mut command = Command::new(&python);
            command.arg(shell::root().join("xtask/scale").join(program));
            let theirs = ask(&mut command, &folder)?;
            let difference = differing(&ours.top, &theirs.top)
                .with_context(|| format!("{engine}, {}", precision.name()))?;
            line(engine, difference, theirs.seconds)?;
        }
        fs::remove_dir_all(&folder)?;
    }
    page += &Stamp::now().line("");
    Ok(page)
}

fn ask(command: &mut Command, folder: &Path) -> Result<Answered> {
    command.arg(folder.join("index")).arg(folder.join("query.json"));
    answer(command.arg(shell::root().join("xtask/scale/top.sql")))
}

/// The largest relative difference of scores, where the samples are the same in the same order.
fn differing(ours: &[(u64, f64)], theirs: &[(u64, f64)]) -> Result<f64> {
    ensure!(theirs.len() == ours.len(), "{} samples in place of {}", theirs.len(), ours.len());
    let mut largest = 0.0_f64;
    for (place, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        ensure!(ours.0 == theirs.0, "place {place}: {theirs:?} in place of {ours:?}");
        largest = largest.max((theirs.1 / ours.1 - 1.0).abs());
    }
    ensure!(largest <= TOLERANCE, "scores differ by {largest:e} of themselves");
    Ok(largest)
}

/// Installs what is pinned into `.tools/scale`, if it is not there yet; its Python.
fn install() -> Result<PathBuf> {
    let what = "DataFusion and Spark (Python 3.11 or later; about 500 MB are fetched)";
    python::pinned("scale", what, "xtask/scale/requirements.txt", PINNED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_order_sample_or_score_is_found() {
        let ours = [(7, 2.0), (9, -1.0)];
        assert_eq!(differing(&ours, &ours).unwrap(), 0.0);
        assert!(differing(&ours, &[(7, 2.0), (9, -1.0 - 1e-12)]).unwrap() > 0.0);
        for wrong in [&[(9, -1.0), (7, 2.0)][..], &ours[..1], &[(7, 2.0), (9, -1.001)]] {
            assert!(differing(&ours, wrong).is_err(), "{wrong:?}");
        }
    }
}
