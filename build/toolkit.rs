//! Finding the CUDA compiler, and choosing the architectures to compile for.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variables that decide; a change of one runs the build script again.
/// `PATH` is read too, but changes too often to rebuild for as long as there is a compiler.
pub const VARIABLES: [&str; 7] = [
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "VIRTUAL_ENV",
    ARCHITECTURES_VARIABLE,
    UNCHECKED_VARIABLE,
    DOCUMENTING_VARIABLE,
];

/// Set where docs.rs builds: all features are on, and there is no compiler.
pub const DOCUMENTING_VARIABLE: &str = "DOCS_RS";

/// When set, kernels that take more than the committed table says are warned of and built.
pub const UNCHECKED_VARIABLE: &str = "GRADROUTE_RESOURCES_UNCHECKED";

/// The version of the compiler that `cargo xtask kernels` fetches, to which committed figures belong.
pub const PINNED: &str = "13.2.86";

/// Overrides the list of architectures, e.g. `GRADROUTE_CUDA_ARCHS=80,90`.
pub const ARCHITECTURES_VARIABLE: &str = "GRADROUTE_CUDA_ARCHS";

/// Machine code is made for these. PTX is made for the lowest, for devices newer than all of them.
pub const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// Whether kernels by this compiler for these architectures, ascending, must keep to the committed table:
/// another compiler hands out registers in its own way, and so does this one from other PTX.
pub fn held_to_table(version: &str, archs: &[u32]) -> bool {
    version == PINNED && archs.first() == ARCHITECTURES.first()
}

/// Where NVIDIA's installers put nvcc, without adding it to `PATH`.
pub const INSTALLED: &str = "/usr/local/cuda";

/// Result of the search for nvcc.
#[derive(Debug, PartialEq)]
pub enum Compiler {
    /// `NVCC=off`: kernels are not wanted.
    Refused,
    /// Nowhere to be found.
    Missing,
    /// The program to run.
    Found(PathBuf),
}

/// What becomes of the kernels.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// They are compiled with this program.
    Build(PathBuf),
    /// The crate is built without them, and says so.
    Warn(&'static str),
    /// The crate is built without them.
    Silence,
}

/// Decides about the kernels; `required` by the feature, or only documentation wanted.
///
/// # Errors
///
/// There must be kernels, and there is no compiler.
pub fn decide(
    found: Compiler,
    required: bool,
    documenting: bool,
) -> Result<Decision, &'static str> {
    match found {
        Compiler::Found(nvcc) => Ok(Decision::Build(nvcc)),
        _ if documenting => Ok(Decision::Silence),
        Compiler::Refused if required => {
            Err("NVCC=off leaves the CUDA kernels out, the feature `require-kernels` wants them")
        }
        Compiler::Missing if required => Err(
            "no nvcc, and the feature `require-kernels` wants the CUDA kernels: set NVCC to one, or in a \
                 checkout run `cargo xtask kernels`",
        ),
        Compiler::Refused => Ok(Decision::Silence),
        Compiler::Missing => Ok(Decision::Warn(
            "no nvcc: built without CUDA kernels (`cargo xtask kernels` fetches one, NVCC=off silences this)",
        )),
    }
}

/// Looks for nvcc: `NVCC` (a path, or `off`), the folders named by `CUDA_HOME` and `CUDA_PATH`,
/// `PATH`, NVIDIA's Python package, in the active virtual environment or in `.tools/cuda`, and [`INSTALLED`].
pub fn find(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Compiler {
    find_or(variable, root, Path::new(INSTALLED))
}

/// The same with another toolkit to fall back on.
pub fn find_or(
    variable: &dyn Fn(&str) -> Option<OsString>,
    root: &Path,
    installed: &Path,
) -> Compiler {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(given) = set("NVCC") {
        let off = given.eq_ignore_ascii_case("off");
        return if off { Compiler::Refused } else { Compiler::Found(given.into()) };
    }
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set);
    let mut candidates: Vec<PathBuf> =
        toolkits.map(|folder| Path::new(&folder).join("bin").join(&program)).collect();
    if let Some(path) = set("PATH") {
        candidates.extend(env::split_paths(&path).map(|folder| folder.join(&program)));
    }
    let environments = set("VIRTUAL_ENV").map(PathBuf::from).into_iter();
    for environment in environments.chain([root.join(".tools/cuda")]) {
        candidates.extend(packaged(&environment).map(|folder| folder.join(&program)));
    }
    candidates.push(installed.join("bin").join(&program));
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    found.map_or(Compiler::Missing, Compiler::Found)
}

/// The `bin` folders of NVIDIA's packages in a Python environment:
/// `lib/python3.x/site-packages/nvidia/cu13/bin` and its like.
fn packaged(environment: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let pythons = children(&environment.join("lib"));
    let packages = pythons
        .into_iter()
        .flat_map(|python| children(&python.join("site-packages").join("nvidia")));
    packages.map(|package| package.join("bin"))
}

/// The entries of a folder in a fixed order; none if it cannot be read.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The architectures to compile for, ascending: those asked for, else those of [`ARCHITECTURES`] that
/// the compiler knows according to its `--list-gpu-code`.
///
/// # Errors
///
/// A list with something else than numbers from 80 up, or a compiler that knows none of ours.
pub fn architectures(asked: Option<&str>, known: &str) -> Result<Vec<u32>, String> {
    let mut chosen = match asked {
        Some(list) => list.split(',').map(architecture).collect::<Result<Vec<u32>, String>>()?,
        None => {
            let known =
                |arch: &u32| known.split_whitespace().any(|code| code == format!("sm_{arch}"));
            ARCHITECTURES.into_iter().filter(known).collect()
        }
    };
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.is_empty() {
        return Err(format!("the compiler knows none of the architectures {ARCHITECTURES:?}"));
    }
    Ok(chosen)
}

fn architecture(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!("{ARCHITECTURES_VARIABLE}: expected numbers from 80 up, as in 80,90; got {text:?}")
    };
    let arch: u32 = text.trim().parse().map_err(|_| wrong())?;
    if arch >= 80 { Ok(arch) } else { Err(wrong()) }
}

/// The version in what `nvcc --version` says.
pub fn version(said: &str) -> String {
    let (_, rest) = said.rsplit_once(", V").unwrap_or_default();
    rest.split_whitespace().next().unwrap_or("of unknown version").to_string()
}
