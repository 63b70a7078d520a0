//! `cargo xtask mutants`: does a test go red when a line of a kernel goes wrong?
//!
//! `xtask/mutants.toml` lists mutations. The task applies them one by one to a copy of the kernels,
//! compiles what changed to PTX, and runs the op suite on it under softcuda until something fails. The
//! suite is built once, in a copy of the tree whose kernels are read from a folder when it runs; all of
//! it lies in `target/mutants`, and what was found is kept there, so that a run that was stopped goes on.
//! What was caught is tested anew when a file changes that its sources are made of, what survived at every run:
//! tests grow. The table goes to `benches/record/cuda-mutants.md`.

mod list;
mod suite;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::{kernels, shell};
use list::Mutant;
use suite::Suite;

const FOLDER: &str = "target/mutants";

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    /// What it was tested on: its own text and the files that its sources are made of.
    key: String,
    /// The test that failed, and what softcuda said; `None`: all passed.
    caught: Option<Caught>,
}

/// What went red.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Caught {
    test: String,
    /// The check of softcuda that ended a launch, if it was one.
    check: Option<String>,
}

/// Tests all mutants, or those whose name holds a word, that were not caught as they are.
pub fn run(only: Option<&str>) -> Result<()> {
    let mutants = list::read(&shell::root().join(list::FILE))?;
    list::check(&mutants, &shell::root())?;
    let chosen: Vec<&Mutant> =
        mutants.iter().filter(|one| only.is_none_or(|only| one.name.contains(only))).collect();
    ensure!(!chosen.is_empty(), "no mutant's name holds {only:?}");
    let workshop = Workshop::open()?;
    let found = workshop.test_all(&chosen)?;
    let keys: BTreeMap<&str, String> = mutants
        .iter()
        .map(|one| Ok((one.name.as_str(), key(one, &shell::root().join("kernels"))?)))
        .collect::<Result<_>>()?;
    let fresh =
        |one: &Mutant| found.get(&one.name).filter(|found| found.key == keys[one.name.as_str()]);
    let file = shell::root().join(table::FILE);
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    std::fs::write(file, table::write(&mutants, &|one| fresh(one), &before))?;
    let survived = |one: &&Mutant| fresh(one).is_some_and(|found| found.caught.is_none());
    let survivors: Vec<&str> =
        mutants.iter().filter(survived).map(|one| one.name.as_str()).collect();
    ensure!(survivors.is_empty(), "no test goes red on {}", survivors.join(", "));
    let tested = mutants.iter().filter(|one| fresh(one).is_some()).count();
    println!("{tested} of {} mutants tested, all caught; {}", mutants.len(), table::FILE);
    Ok(())
}

/// Checks the list against the kernels, without testing anything.
#[cfg(test)]
fn anchors() -> Result<Vec<Mutant>> {
    let mutants = list::read(&shell::root().join(list::FILE))?;
    list::check(&mutants, &shell::root())?;
    Ok(mutants)
}

/// Everything that mutants are tested with.
struct Workshop {
    folder: PathBuf,
    nvcc: PathBuf,
    suite: Suite,
    /// Names of the kernel sources.
    sources: Vec<String>,
    /// Of the kernels as they are.
    stamp: String,
}

impl Workshop {
    /// Builds the suite and compiles the kernels as they are.
    fn open() -> Result<Self> {
        let nvcc = kernels::compiler()?.context("NVCC=off leaves no kernels to mutate")?;
        let folder = shell::root().join(FOLDER);
        let suite = Suite::build(&folder)?;
        let kernels = shell::root().join("kernels");
        let mut sources: Vec<String> = list::files(&kernels)?
            .iter()
            .filter_map(|file| file.strip_suffix(".cu").map(String::from))
            .collect();
        sources.sort();
        let stamp = digest(&kernels, &list::files(&kernels)?)?;
        let workshop = Self { folder, nvcc, suite, sources, stamp };
        workshop.base()?;
        Ok(workshop)
    }

    fn state(&self) -> Result<BTreeMap<String, Found>> {
        let text = std::fs::read_to_string(self.folder.join("state.json")).unwrap_or("{}".into());
        Ok(serde_json::from_str(&text)?)
    }

    /// Compiles the kernels as they are, unless that was done.
    fn base(&self) -> Result<()> {
        let base = self.folder.join("base");
        let stamp = base.join("stamp");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == self.stamp) {
            return Ok(());
        }
        println!("compiling the kernels as they are");
        fresh(&base)?;
        for source in &self.sources {
            self.compile(&shell::root().join("kernels"), source, &base)?;
        }
        Ok(std::fs::write(stamp, &self.stamp)?)
    }

    /// Tests what was not caught yet, some at a time, and keeps each result at once.
    fn test_all(&self, chosen: &[&Mutant]) -> Result<BTreeMap<String, Found>> {
        let found = Mutex::new(self.state()?);
        let style = "{bar:30} {pos}/{len}, {elapsed}, {eta} to go";
        let bar =
            ProgressBar::new(chosen.len() as u64).with_style(ProgressStyle::with_template(style)?);
        let next = AtomicUsize::new(0);
        let work = |worker: usize| -> Result<()> {
            while let Some(mutant) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                let key = key(mutant, &shell::root().join("kernels"))?;
                let known = |found: &BTreeMap<String, Found>| {
                    let found = found.get(&mutant.name);
                    found.is_some_and(|found| found.key == key && found.caught.is_some())
                };
                if !known(&found.lock().expect("no worker panics")) {
                    let caught = self.test(mutant, worker);
                    let caught = caught.with_context(|| mutant.name.clone())?;
                    let said = caught.as_ref().map_or("SURVIVED".into(), Caught::to_string);
                    bar.suspend(|| println!("{}: {said}", mutant.name));
                    let mut found = found.lock().expect("no worker panics");
                    found.insert(mutant.name.clone(), Found { key, caught });
                    let text = serde_json::to_string(&*found)?;
                    std::fs::write(self.folder.join("state.json"), text)?;
                }
                bar.inc(1);
            }
            Ok(())
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = (0..workers).map(|at| scope.spawn(move || work(at))).collect();
            running.into_iter().try_for_each(|one| one.join().expect("no worker panics"))
        })?;
        bar.finish_and_clear();
        Ok(found.into_inner().expect("no worker panics"))
    }

    fn compile(&self, kernels: &Path, source: &str, to: &Path) -> Result<()> {
        crate::kernels::text(&self.nvcc, kernels, source, to)
    }

    /// Compiles a mutant and runs the tests: first those that it names, on the sources that it names.
    fn test(&self, mutant: &Mutant, worker: usize) -> Result<Option<Caught>> {
        let [kernels, mutated] =
            ["kernels", "mutated"].map(|name| self.folder.join(format!("{name}-{worker}")));
        self.mutate(mutant, &kernels)?;
        fresh(&mutated)?;
        let base = self.folder.join("base");
        let image = |folder: &Path, source: &str| folder.join(format!("{source}.ptx"));
        for source in &self.sources {
            std::fs::copy(image(&base, source), image(&mutated, source))?;
        }
        for source in &mutant.sources {
            self.compile(&kernels, source, &mutated)?;
            let read = |folder: &Path| std::fs::read_to_string(image(folder, source));
            ensure!(read(&base)? != read(&mutated)?, "the mutation changes nothing in {source}");
        }
        if !mutant.tests.is_empty() {
            let caught = self.suite.run(&mutated, &mutant.tests, mutant.cases.as_deref())?;
            if caught.is_some() {
                // As they are, the kernels must pass.
                let own = self.suite.run(&base, &mutant.tests, mutant.cases.as_deref())?;
                ensure!(own.is_none(), "the kernels as they are do not pass {:?}", mutant.tests);
                return Ok(caught);
            }
        }
        // Nothing yet: everything, on everything.
        for source in self.sources.iter().filter(|source| !mutant.sources.contains(source)) {
            self.compile(&kernels, source, &mutated)?;
        }
        self.suite.run(&mutated, &[], None)
    }

    /// A copy of the kernels with the mutation.
    fn mutate(&self, mutant: &Mutant, to: &Path) -> Result<()> {
        fresh(to)?;
        let own = shell::root().join("kernels");
        for file in list::files(&own)? {
            let (from, to) = (own.join(&file), to.join(&file));
            std::fs::create_dir_all(to.parent().expect("it has a folder"))?;
            if file == mutant.file {
                std::fs::write(to, mutant.apply(&std::fs::read_to_string(from)?)?)?;
            } else {
                std::fs::copy(from, to)?;
            }
        }
        Ok(())
    }
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(std::fs::create_dir_all(folder)?)
}

/// What a mutant is tested on, in short.
fn key(mutant: &Mutant, kernels: &Path) -> Result<String> {
    let files = list::made_of(kernels, &mutant.sources)?;
    let text =
        format!("{} {} {} {}", digest(kernels, &files)?, mutant.file, mutant.from, mutant.to);
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Of files in a folder, in hexadecimal digits.
fn digest<'a>(folder: &Path, files: impl IntoIterator<Item = &'a String>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(file.as_bytes()).update(&std::fs::read(folder.join(file))?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

impl std::fmt::Display for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.check {
            None => write!(f, "{}", self.test),
            Some(check) => write!(f, "{}: softcuda: {check}", self.test),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_tested_on_what_its_sources_include() {
        let kernels = shell::root().join("kernels");
        let files = list::made_of(&kernels, &["transpose".into()]).unwrap();
        assert_eq!(Vec::from_iter(files), ["include/gradroute.h", "transpose.cu"]);
        // Through other headers, too; and a mutated file is always among them.
        for mutant in anchors().unwrap() {
            let files = list::made_of(&kernels, &mutant.sources).unwrap();
            assert!(files.contains(&mutant.file), "{}: {files:?}", mutant.name);
        }
    }

    #[test]
    fn every_anchor_stands_once_in_its_file() {
        let mutants = anchors().unwrap();
        assert!(mutants.len() >= 40, "{}", mutants.len());
        // Each kernel source and each header that holds code has one.
        let kernels = shell::root().join("kernels");
        let files = list::files(&kernels).unwrap().into_iter();
        let code = files.filter(|file| file.ends_with(".cu") || file.ends_with(".cuh"));
        let without: Vec<String> =
            code.filter(|file| mutants.iter().all(|mutant| mutant.file != *file)).collect();
        assert!(without.is_empty(), "no mutant of {without:?}");
    }
}
