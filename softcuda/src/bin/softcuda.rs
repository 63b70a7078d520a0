//! `softcuda [--] COMMAND…`: runs a command with the driver of this build in front of any other.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const LIBRARY: &str = "libsoftcuda.so";
/// The names under which programs look for a CUDA driver.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
const USAGE: &str = "usage: softcuda [--] COMMAND [ARGUMENT…]

Runs the command with a CUDA driver that executes PTX on the CPU. SOFTCUDA_LIBRARY names
another build of the driver; softcuda/README.md lists the variables that the driver reads.";

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    let Some((program, arguments)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // The alias `cargo softcuda` ends in `cargo`, so `cargo softcuda -- test` comes as `cargo -- test`.
    let arguments = match arguments.split_first() {
        Some((first, rest)) if program == "cargo" && first == "--" => rest,
        _ => arguments,
    };
    if program == "--help" || program == "-h" {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(program, arguments) {
        Ok(never) => match never {},
        Err(what) => {
            eprintln!("softcuda: {what}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the command.
fn run(program: &OsString, arguments: &[OsString]) -> Result<std::convert::Infallible, String> {
    let folder = folder(&library()?)?;
    let path = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty());
    let known = path.iter().flat_map(std::env::split_paths);
    let search = std::env::join_paths(std::iter::once(folder).chain(known))
        .map_err(|error| error.to_string())?;
    let error = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", search)
        .env("SOFTCUDA", "1")
        .exec();
    Err(format!("{}: {error}", program.display()))
}

/// The driver that was built together with this program.
fn library() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("SOFTCUDA_LIBRARY") {
        return Ok(PathBuf::from(path));
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = program.parent().ok_or("the program lies in no folder")?;
    // Cargo leaves a library that is only a dependency in `deps`, and that one is always up to date.
    let places = [beside.join("deps").join(LIBRARY), beside.join(LIBRARY)];
    let found = places.iter().find(|path| path.exists());
    found.cloned().ok_or(format!("no {LIBRARY} beside {}", program.display()))
}

/// A folder with nothing but the driver under CUDA's names: the build's own folder must not come into the
/// search path.
fn folder(library: &Path) -> Result<PathBuf, String> {
    let library = library.canonicalize().map_err(|e| format!("{}: {e}", library.display()))?;
    // The same library always has the same folder, so that folders don't pile up.
    let parent = library.parent().ok_or("the library lies in no folder")?;
    let folder = parent.join("softcuda-driver");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for name in NAMES {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Two runs may meet here: each makes its own link and puts it in place in one step.
        let own = folder.join(format!("{name}.{}", std::process::id()));
        symlink(&library, &own).and_then(|()| std::fs::rename(&own, &link)).map_err(failed)?;
    }
    Ok(folder)
}
