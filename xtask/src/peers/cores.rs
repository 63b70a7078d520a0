//! Which cores the programs run on.
//!
//! Left to the system, a program stays on the core that it began on, and where a neighbour on the
//! host keeps one of them busy, some participants are slowed in every round and others in none.

use std::process::{Command, Stdio};

/// As many cores as there are threads, as `taskset` names them; nothing where there are no more than
/// that, or no `taskset`.
pub fn chosen(threads: usize) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores = last(&allowed(list.trim())?, threads)?;
    let runs = Command::new("taskset")
        .args(["--cpu-list", &cores, "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    runs.then_some(cores)
}

/// A program that runs on these cores alone, if there are any.
pub fn on(cores: Option<&str>, program: &std::path::Path) -> Command {
    let Some(cores) = cores else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", cores]).arg(program);
    command
}

/// The numbers in a list such as `0-2,5`.
fn allowed(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cores.extend(first..=last);
    }
    Some(cores)
}

/// The system and whoever started this keep to the first ones, so the last are taken.
fn last(cores: &[usize], threads: usize) -> Option<String> {
    let others = cores.len().checked_sub(threads).filter(|&others| others > 0)?;
    let names: Vec<String> = cores[others..].iter().map(usize::to_string).collect();
    Some(names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cores_are_taken_while_one_is_left() {
        let cores = allowed("0-2,5").unwrap();
        assert_eq!(cores, [0, 1, 2, 5]);
        assert_eq!(last(&cores, 1).as_deref(), Some("5"));
        assert_eq!(last(&cores, 3).as_deref(), Some("1,2,5"));
        assert_eq!(last(&cores, 4), None);
        assert_eq!(last(&cores, 5), None);
        assert_eq!(allowed("all"), None);
    }
}
