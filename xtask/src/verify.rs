//! `cargo xtask verify`: what static verifiers say of the kernels.
//!
//! `sentryward` proves that small launches, listed in `xtask/launches.toml`, are free of races and that
//! all threads reach their barriers. `cuxray` reads the machine code: spills, bank conflicts, coalescing.
//! (Shared memory and occupancy are `cargo xtask gates`' part, from the compiler's own report.) Both come
//! as Python packages, pinned, into `.tools/verify`. The table is `benches/record/cuda-verify.md`.

mod cuxray;
mod header;
mod launches;
mod sentryward;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{gates, kernels, python, shell};

const PACKAGES: [&str; 2] = ["sentryward==0.1.1", "cuxray==0.6.0"];
const TABLE: &str = "benches/record/cuda-verify.md";
const FOLDER: &str = "target/verify";

const HEAD: &str = "\
# What static verifiers say of the CUDA kernels

`cargo xtask verify` writes it anew with `--bless`, and otherwise fails where it would differ.

## Races and barriers

By sentryward 0.1.1, on the PTX for compute capability 8.0, for the launches of
[the list](../../xtask/launches.toml). *One way*: branches that depend on data are followed on one way only.

| kernel | blocks | said |
|---|---|---|
";
const MACHINE_CODE: &str = "
## Machine code

By cuxray 0.6.0, for compute capability 8.0: spills, the ways of the worst bank conflict, accesses that conflict,
global accesses that do not coalesce, and accesses whose addresses it could read, of all.

| kernel | spills | ways | conflicts | uncoalesced | read |
|---|---|---|---|---|---|
";

/// Runs both; `only` launches of kernels whose name holds a word, and then no table.
pub fn run(only: Option<&str>, bless: bool) -> Result<()> {
    let bin = tools()?;
    let folder = shell::root().join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let nvcc = kernels::compiler()?.context("NVCC=off leaves no kernels to verify")?;
    let (proofs, mut wrong) = proofs(&bin, &nvcc, &folder, only)?;
    if only.is_some() {
        print!("{proofs}");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        return Ok(());
    }
    let images = gates::build(false)?;
    let home = nvcc.parent().and_then(Path::parent).context("nvcc lies in a folder bin")?;
    let (read, spills) = cuxray::rows(&bin, home, &images, &gates::sources()?)?;
    wrong.extend(spills);
    let made = format!("{HEAD}{proofs}{MACHINE_CODE}{read}");
    let file = shell::root().join(TABLE);
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    if bless {
        std::fs::write(file, made)?;
    } else if let Some(lines) = difference(&committed, &made) {
        wrong.push(format!("{TABLE}:\n{lines}"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("as {TABLE} says");
    Ok(())
}

/// Verifies the launches; their lines of the table, and what is wrong.
fn proofs(
    bin: &Path,
    nvcc: &Path,
    folder: &Path,
    only: Option<&str>,
) -> Result<(String, Vec<String>)> {
    let list = launches::read(&shell::root().join(launches::FILE))?;
    let structs = header::structs(&std::fs::read_to_string(
        shell::root().join("kernels/include/gradroute.h"),
    )?)?;
    let chosen: Vec<_> = list
        .launch
        .iter()
        .filter(|launch| only.is_none_or(|only| launch.kernel.contains(only)))
        .collect();
    ensure!(!chosen.is_empty(), "no launch of a kernel whose name holds {only:?}");
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {elapsed}: {msg}")?;
    let bar = ProgressBar::new(chosen.len() as u64).with_style(style);
    let (mut rows, mut wrong) = (String::new(), Vec::new());
    for launch in chosen {
        bar.set_message(launch.kernel.clone());
        let ptx = text(nvcc, folder, &launch.source)?;
        let input = launch.input(&ptx, &list.layer, &structs)?;
        let said = sentryward::verify(bin, folder, &ptx, &input)?;
        let blocks = launch.grid.iter().product::<u32>();
        let way = if launch.representative { ", one way" } else { "" };
        let _ = writeln!(rows, "| {} | {blocks} | {said}{way} |", launch.kernel);
        if !said.is_fine(launch.allowed.as_deref()) {
            wrong.push(format!("{}: {said}, and that is not allowed", launch.kernel));
        }
        bar.suspend(|| println!("{}: {said}{way}", launch.kernel));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((rows, wrong))
}

/// A source's PTX, compiled unless it is there, newer than all of the kernels' files.
fn text(nvcc: &Path, folder: &Path, source: &str) -> Result<String> {
    let (kernels, file) = (shell::root().join("kernels"), folder.join(format!("{source}.ptx")));
    let changed = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified());
    let made = changed(&file).ok();
    let mut inputs = vec![kernels.join(format!("{source}.cu"))];
    let headers = std::fs::read_dir(kernels.join("include"))?;
    inputs.extend(headers.flatten().map(|entry| entry.path()));
    let newest = inputs.iter().map(|path| changed(path)).collect::<Result<Vec<_>, _>>()?;
    if newest.iter().any(|&time| made.is_none_or(|made| time > made)) {
        kernels::text(nvcc, &kernels, source, folder)?;
    }
    Ok(std::fs::read_to_string(file)?)
}

/// Fetches the packages, if they are not there; the folder of their programs.
fn tools() -> Result<PathBuf> {
    let arguments = [&["--quiet"][..], &PACKAGES].concat();
    Ok(python::environment("verify", "the verifiers", &PACKAGES.join(" "), &arguments)?.join("bin"))
}

/// The lines that only one of two texts has, if any.
fn difference(old: &str, new: &str) -> Option<String> {
    let only = |sign: char, one: &str, other: &str| -> String {
        let others: Vec<&str> = other.lines().collect();
        let lines = one.lines().filter(|line| !others.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    (old != new).then(|| only('-', old, new) + &only('+', new, old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_both_sides() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n"), Some("- b\n+ c\n".into()));
    }
}
