//! Compiling the kernels into one fat binary each, and the table that embeds them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// nvcc's arguments: machine code for every architecture and PTX for the lowest, uncompressed so
/// that the PTX can be read without the driver.
pub fn arguments(source: &Path, target: &Path, include: &Path, archs: &[u32]) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["-fatbin", "-std=c++17", "-O3", "--no-compress", "--threads=0", "-Xptxas=-v,-warn-spills"]
            .map(String::from)
            .into();
    for (place, arch) in archs.iter().enumerate() {
        let ptx = if place == 0 { format!(",compute_{arch}") } else { String::new() };
        arguments.push("-gencode".into());
        arguments.push(format!("arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    let paths = [("-I", include), ("-o", target), ("", source)];
    for (flag, path) in paths {
        if !flag.is_empty() {
            arguments.push(flag.into());
        }
        arguments.push(path.display().to_string());
    }
    arguments
}

/// Runs the compiler and returns what it said.
///
/// # Errors
///
/// The compiler cannot be started, or fails: what it said is in the message.
pub fn run(compiler: &Path, arguments: &[String]) -> Result<String, String> {
    let shown = format!("{} {}", compiler.display(), arguments.join(" "));
    let output = Command::new(compiler)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot start {shown}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{shown}\nended with {}:\n{said}", output.status))
    }
}

/// Rust source of the table of embedded kernels, whose fat binaries lie in `OUT_DIR`.
pub fn table(archs: &[u32], kernels: &[String]) -> String {
    let mut text = format!("pub(super) const ARCHITECTURES: &[u32] = &{archs:?};\n");
    text += "pub(super) const KERNELS: &[Kernel] = &[\n";
    for name in kernels {
        let image = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))");
        let _ = writeln!(text, "    Kernel {{ name: {name:?}, image: {image} }},");
    }
    text + "];\n"
}

/// Checks the assembler's report: no kernel may spill registers or use a stack frame.
///
/// # Errors
///
/// Names each kernel and architecture that does.
pub fn check_resources(report: &str) -> Result<(), String> {
    let mut entry = "?";
    let mut wrong = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function ") {
            entry = rest;
        }
        let used = line.split(',').any(|part| {
            let (count, what) = part.trim().split_once(" bytes ").unwrap_or_default();
            ["stack frame", "spill stores", "spill loads"].contains(&what) && count != "0"
        });
        if used {
            wrong.push(format!("{entry}: {}", line.trim()));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
