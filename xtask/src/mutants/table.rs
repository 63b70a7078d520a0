//! What became of the mutants, as a table.

use std::fmt::Write as _;

use super::Found;
use super::list::Mutant;

/// Where it is written.
pub const FILE: &str = "benches/record/cuda-mutants.md";

const HEAD: &str = "\
# Mutants of the CUDA kernels

Each line of a kernel that [the list](../../xtask/mutants.toml) gets wrong, one at a time, and what goes red: the first
test of the op suite under softcuda that fails, and, where a launch ended there, softcuda's check. `cargo
xtask mutants` tests them anew.

| file | mutation | caught by |
|---|---|---|
";

/// The table of all mutants, in the order of the list.
pub fn write<'a>(mutants: &[Mutant], found: &dyn Fn(&Mutant) -> Option<&'a Found>) -> String {
    let mut text = String::from(HEAD);
    for mutant in mutants {
        let caught = match found(mutant).map(|found| &found.caught) {
            None => "not tested".into(),
            Some(None) => "**nothing**".into(),
            Some(Some(caught)) => match &caught.check {
                None => format!("`{}`", caught.test),
                Some(check) => format!("`{}`: {check}", caught.test),
            },
        };
        let _ =
            writeln!(text, "| {} | {} | {} |", mutant.file, mutant.what, caught.replace('|', "/"));
    }
    text
}
