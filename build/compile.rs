//! Compiling the kernels into one fat binary each, and the table that embeds them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// nvcc's arguments: PTX for the lowest of the architectures, which are in order, and machine code for each, all
/// assembled from that PTX. So it is compiled once, and what is tested by executing it is what every device
/// runs. Uncompressed, so that the PTX can be read without the driver. Beside the target comes a depfile.
pub fn arguments(source: &Path, target: &Path, include: &Path, archs: &[u32]) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["-fatbin", "-std=c++17", "-O3", "--no-compress", "--threads=0", "-Xptxas=-v,-warn-spills"]
            .map(String::from)
            .into();
    if let Some(lowest) = archs.first() {
        let codes: String = archs.iter().map(|arch| format!(",sm_{arch}")).collect();
        arguments.push("-gencode".into());
        arguments.push(format!("arch=compute_{lowest},code=[compute_{lowest}{codes}]"));
    }
    arguments.push("-MD".into());
    let depfile = target.with_extension("d");
    let paths = [("-MF", depfile.as_path()), ("-I", include), ("-o", target), ("", source)];
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
