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
xtask mutants` tests them anew; *earlier* is what was found before the kernel changed last.

| file | mutation | caught by |
|---|---|---|
";

/// What is said of a mutant that never was tested, and before what was found of another text.
const NOT_TESTED: &str = "not tested";
const EARLIER: &str = "*earlier* ";

/// The table of all mutants, in the order of the list; `before` is the table as it was.
pub fn write<'a>(
    mutants: &[Mutant],
    found: &dyn Fn(&Mutant) -> Option<&'a Found>,
    before: &str,
) -> String {
    let mut text = String::from(HEAD);
    for mutant in mutants {
        let caught = match found(mutant).map(|found| &found.caught) {
            None => earlier(mutant, before),
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

/// What a table says of a mutant.
fn earlier(mutant: &Mutant, table: &str) -> String {
    let start = format!("| {} | {} | ", mutant.file, mutant.what);
    let row = table.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix(" |"));
    match row.filter(|caught| *caught != NOT_TESTED) {
        None => NOT_TESTED.into(),
        Some(caught) if caught.starts_with(EARLIER) => caught.into(),
        Some(caught) => format!("{EARLIER}{caught}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_before_stays_and_says_so() {
        let mutants = crate::mutants::anchors().unwrap();
        let found = |_: &Mutant| None;
        let first = &mutants[0];
        let row = |text: &str| {
            let start = format!("| {} | {} | ", first.file, first.what);
            let line = text.lines().find(|line| line.starts_with(&start)).unwrap();
            line[start.len()..].to_owned()
        };
        let none = write(&mutants, &found, "");
        assert_eq!(row(&none), "not tested |");
        assert_eq!(write(&mutants, &found, &none), none);
        let once = none.replace("not tested", "`a_test`: Check");
        let later = write(&mutants, &found, &once);
        assert_eq!(row(&later), "*earlier* `a_test`: Check |");
        assert_eq!(write(&mutants, &found, &later), later);
    }
}
