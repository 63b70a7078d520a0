//! `cargo xtask gates`: what the compiler made of the kernels.
//!
//! The build script refuses a build that takes more registers, or holds fewer blocks, than the committed
//! table; here every difference counts, but for the few registers by which the assembler itself varies.
//! Main loops of GEMM kernels are read in the disassembly.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::disassembly;
use crate::kernels::toolkit::{self, ARCHITECTURES};
use crate::shell;

#[allow(dead_code)] // the build script uses the rest
#[path = "../../build/resources.rs"]
mod resources;

/// Builds the kernels and checks what came of them, or writes the table anew.
pub fn run(bless: bool) -> Result<()> {
    let folder = build(bless)?;
    resources(&folder, bless)?;
    main_loops(&folder)
}

/// Compares the table with the build's reports.
fn resources(folder: &Path, bless: bool) -> Result<()> {
    let found = resources::collect(folder, &sources()?).map_err(anyhow::Error::msg)?;
    ensure!(found.spills.is_empty(), "{}", found.spills.join("\n"));
    for arch in ARCHITECTURES {
        let complete = found.table.values().all(|row| row.cells.contains_key(&arch));
        ensure!(complete, "the table is of all architectures: this build lacks {arch}");
    }
    let made = resources::write(&found.table, toolkit::PINNED, &ARCHITECTURES);
    let file = shell::root().join(resources::TABLE);
    if bless {
        return Ok(std::fs::write(file, made)?);
    }
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    let committed = resources::parse(&committed).map_err(anyhow::Error::msg)?;
    let lines = resources::differences(&found.table, &committed);
    if !lines.is_empty() {
        bail!("{}:\n{}\n`{}` writes it", resources::TABLE, lines.join("\n"), resources::BLESS);
    }
    println!("{} kernels take what {} says", found.table.len(), resources::TABLE);
    Ok(())
}

/// Disassembles the GEMM kernels for all architectures and checks their main loops.
fn main_loops(folder: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources()? {
        let image = folder.join(format!("{source}.fatbin"));
        let kernels = resources::bounds(&std::fs::read(&image)?).into_keys();
        let gemms: Vec<String> = kernels.filter(|name| disassembly::is_gemm(name)).collect();
        if gemms.is_empty() {
            continue;
        }
        for (arch, text) in disassemble(&image, &gemms.join(","))? {
            let found = disassembly::main_loops(&text);
            ensure!(found.keys().eq(gemms.iter()), "{} for sm_{arch}: {found:?}", image.display());
            seen += found.len();
            for (kernel, found) in found {
                let complaint = disassembly::complaint(found);
                wrong.extend(complaint.map(|why| format!("{kernel} for sm_{arch}: {why}")));
            }
        }
    }
    ensure!(seen > 0, "no GEMM kernels among the sources");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{seen} main loops: matrix instructions, 16-byte loads, no scalar arithmetic");
    Ok(())
}

/// What cuobjdump prints of these kernels, by architecture.
fn disassemble(image: &Path, kernels: &str) -> Result<Vec<(u32, String)>> {
    let nvcc = crate::kernels::compiler()?.context("no compiler")?;
    let one = &|arch: u32| {
        let mut command = Command::new(nvcc.with_file_name("cuobjdump"));
        command.args(["-sass", "-arch", &format!("sm_{arch}"), "-fun", kernels]).arg(image);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok((arch, String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    std::thread::scope(|scope| {
        let running = ARCHITECTURES.map(|arch| scope.spawn(move || one(arch)));
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    })
}

/// The names of the kernel sources.
pub fn sources() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(shell::root().join("kernels"))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let sources = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    Ok(sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_string())).collect())
}

/// Builds a device test, and so the kernels that all of them share; the folder of these.
pub fn build(unchecked: bool) -> Result<PathBuf> {
    let nvcc = crate::kernels::compiler()?.context("NVCC=off leaves no kernels to check")?;
    let said = Command::new(&nvcc).arg("--version").output()?.stdout;
    let version = toolkit::version(&String::from_utf8_lossy(&said));
    ensure!(
        version == toolkit::PINNED,
        "{} is {version}, the gates are of {}: unset NVCC and its like, run `cargo xtask kernels`",
        nvcc.display(),
        toolkit::PINNED
    );
    let mut command = shell::cargo();
    command.args(["test", "--release", "--no-run", "--test", "cuda_probe"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if unchecked {
        command.env(toolkit::UNCHECKED_VARIABLE, "1");
    }
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the kernels do not build");
    folder(&String::from_utf8_lossy(&output.stdout)).context("cargo ran no build script")
}

/// Where the crate's build script wrote, in cargo's messages.
fn folder(messages: &str) -> Option<PathBuf> {
    let mut folders = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["out_dir"].as_str()?))
    });
    let ours = |folder: &PathBuf| {
        let package = folder.parent().and_then(Path::file_name);
        package.is_some_and(|name| name.to_string_lossy().starts_with("gradroute-"))
    };
    folders.find(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_folder_is_ours() {
        let messages = "{\"reason\":\"build-script-executed\",\"out_dir\":\"/t/build/blake3-1/out\"}\n\
                        not json\n{\"reason\":\"build-script-executed\",\"out_dir\":\
                        \"/t/build/gradroute-2/out\"}\n";
        assert_eq!(folder(messages), Some(PathBuf::from("/t/build/gradroute-2/out")));
        assert_eq!(folder("{\"reason\":\"build-finished\"}"), None);
    }
}
