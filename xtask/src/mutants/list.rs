//! The committed list of mutations.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Where it stands.
pub const FILE: &str = "xtask/mutants.toml";

/// One mutation: a piece of a file, and what stands there instead.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    pub name: String,
    /// What is wrong with it, in words.
    pub what: String,
    /// In `kernels`.
    pub file: String,
    /// Stands there exactly once.
    pub from: String,
    pub to: String,
    /// Kernel sources that are compiled before the others are.
    pub sources: Vec<String>,
    /// Tests that are run before the others are.
    pub tests: Vec<String>,
    /// A word in the names of the problems that these are run on.
    pub cases: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// The file's text with the mutation.
    pub fn apply(&self, text: &str) -> Result<String> {
        let times = text.matches(&self.from).count();
        ensure!(
            times == 1,
            "{}: its anchor stands {times} times in kernels/{}:\n{}",
            self.name,
            self.file,
            self.from
        );
        ensure!(self.from != self.to, "{}: changes nothing", self.name);
        Ok(text.replacen(&self.from, &self.to, 1))
    }
}

/// Reads the list.
pub fn read(file: &Path) -> Result<Vec<Mutant>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    Ok(toml::from_str::<List>(text)?.mutant)
}

/// Checks that every anchor stands where it should, every name is one's own, every source there.
pub fn check(mutants: &[Mutant], root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for (at, mutant) in mutants.iter().enumerate() {
        if mutants[..at].iter().any(|other| other.name == mutant.name) {
            wrong.push(format!("{}: the name is another's too", mutant.name));
        }
        let file = root.join("kernels").join(&mutant.file);
        let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        wrong.extend(mutant.apply(&text).err().map(|error| error.to_string()));
        let missing = mutant
            .sources
            .iter()
            .filter(|source| !root.join("kernels").join(format!("{source}.cu")).exists());
        wrong.extend(missing.map(|source| format!("{}: no kernels/{source}.cu", mutant.name)));
        if mutant.sources.is_empty() {
            wrong.push(format!("{}: names no source", mutant.name));
        }
    }
    ensure!(wrong.is_empty(), "{FILE}:\n{}", wrong.join("\n"));
    Ok(())
}

/// The kernel sources and all that they include, by their paths in the folder of the kernels.
pub fn made_of(kernels: &Path, sources: &[String]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut next: Vec<String> = sources.iter().map(|source| format!("{source}.cu")).collect();
    while let Some(file) = next.pop() {
        let path = kernels.join(&file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let included = text
            .lines()
            .filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'))
            .map(|name| format!("include/{name}"));
        next.extend(included.filter(|name| !found.contains(name)));
        found.insert(file);
    }
    Ok(found)
}

/// All files under a folder, by their paths in it, in order.
pub fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?.iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_must_stand_once() {
        let text = "[[mutant]]\nname = 'n'\nwhat = 'w'\nfile = 'f'\nfrom = 'a + b'\nto = 'a - b'\n\
                    sources = ['s']\ntests = []\n";
        let mutant = parse(text).unwrap().pop().unwrap();
        assert_eq!(mutant.apply("x = a + b;").unwrap(), "x = a - b;");
        for text in ["x = a - b;", "a + b + a + b"] {
            let error = mutant.apply(text).unwrap_err().to_string();
            assert!(error.contains("times in kernels/f"), "{error}");
        }
    }
}
