//! `cargo xtask gpu`: first contact with a real GPU, and one report file to send.
//!
//! Everything runs whatever fails, so that one visit says as much as it can.

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{kernels, shell};

const REPORT: &str = "runs/gpu-report.md";
/// The oldest compute capability with kernels.
const OLDEST: (u32, u32) = (8, 0);
/// What nvidia-smi is asked, in the order of [`Gpu`]'s fields and then for the report.
const QUERY: &str = "--query-gpu=name,compute_cap,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,\
                     power.limit,temperature.gpu";

/// Why there is nothing to run on.
#[derive(Debug, PartialEq)]
enum Missing {
    /// nvidia-smi cannot be started or fails: with what it said.
    Driver(String),
    /// It lists no device.
    Device,
    /// The first device is too old.
    Capability(String, (u32, u32)),
    /// Not the form that is expected.
    Strange(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(said) => write!(f, "no GPU driver: nvidia-smi: {said}"),
            Self::Device => write!(f, "a driver, but no GPU"),
            Self::Capability(name, (major, minor)) => {
                let (oldest, least) = OLDEST;
                write!(
                    f,
                    "{name} has compute capability {major}.{minor}, the kernels need {oldest}.{least}"
                )
            }
            Self::Strange(said) => write!(f, "nvidia-smi said {said:?}"),
        }
    }
}

impl std::error::Error for Missing {}

/// The first device.
#[derive(Debug, PartialEq)]
struct Gpu {
    name: String,
    capability: (u32, u32),
    driver: String,
    /// The rest of the line.
    state: String,
}

/// One thing that is run.
struct Check {
    name: String,
    command: Command,
}

/// How it ended.
struct Outcome {
    name: String,
    passed: bool,
    seconds: f64,
    said: String,
}

/// Checks the device, runs everything on it and writes the report.
pub fn run() -> Result<()> {
    let before = device()?;
    println!("{}, driver {}", before.name, before.driver);
    ensure!(kernels::compiler()?.is_some(), "NVCC=off leaves no kernels to run");
    let file = shell::root().join(REPORT);
    std::fs::create_dir_all(file.parent().expect("it lies in a folder"))?;
    let mut outcomes = Vec::new();
    for check in checks() {
        println!("── {}", check.name);
        outcomes.push(check.run());
        // Each time, so that whoever stops here has a report too.
        std::fs::write(&file, report(&before, device().ok().as_ref(), &outcomes))?;
    }
    println!("the report is {REPORT}");
    let failed: Vec<&str> =
        outcomes.iter().filter(|one| !one.passed).map(|one| one.name.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The first device, if it will do.
fn device() -> Result<Gpu, Missing> {
    let output = Command::new("nvidia-smi").args([QUERY, "--format=csv,noheader"]).output();
    let output = output.map_err(|error| Missing::Driver(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    if !output.status.success() {
        return Err(Missing::Driver(said));
    }
    suitable(&said)
}

/// Reads nvidia-smi's lines and judges the first.
fn suitable(said: &str) -> Result<Gpu, Missing> {
    let Some(line) = said.lines().next().filter(|line| !line.trim().is_empty()) else {
        return Err(Missing::Device);
    };
    let strange = || Missing::Strange(line.to_string());
    let fields: Vec<&str> = line.splitn(4, ',').map(str::trim).collect();
    let [name, capability, driver, state] = fields[..] else { return Err(strange()) };
    let (major, minor) = capability.split_once('.').ok_or_else(strange)?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| strange());
    let capability = (number(major)?, number(minor)?);
    if capability < OLDEST {
        return Err(Missing::Capability(name.into(), capability));
    }
    Ok(Gpu { name: name.into(), capability, driver: driver.into(), state: state.into() })
}

/// Everything that runs on the device: the tests, the tests under each of compute-sanitizer's tools, and the
/// benches, each where it is there.
fn checks() -> Vec<Check> {
    let tests =
        [&["--test", "cuda_probe"][..], &["--test", "cuda_run"], &["--test", "ops", "--", "cuda_"]];
    let mut checks: Vec<Check> = tests.iter().map(|arguments| test(arguments, None)).collect();
    if starts("compute-sanitizer") {
        for tool in ["memcheck", "racecheck", "synccheck", "initcheck"] {
            checks.extend(tests.iter().map(|arguments| test(arguments, Some(tool))));
        }
    }
    if shell::root().join("benches/cuda.rs").exists() {
        let mut command = shell::cargo();
        command.args(["bench", "--bench", "cuda", "--", "--table"]);
        checks.push(Check { name: "cargo bench --bench cuda -- --table".into(), command });
    }
    checks
}

/// A run of tests that must not be skipped, by themselves or under a tool of compute-sanitizer.
fn test(arguments: &[&str], tool: Option<&str>) -> Check {
    let mut command = shell::cargo();
    command.args(["test", "--release"]).args(arguments).env("GRADROUTE_REQUIRE_GPU", "1");
    let mut name = format!("cargo test --release {}", arguments.join(" "));
    if let Some(tool) = tool {
        let runner =
            format!("compute-sanitizer --tool {tool} --error-exitcode 1 --target-processes all");
        // Cargo starts the tests' programs by way of this one.
        command.env(format!("CARGO_TARGET_{}_RUNNER", target()), runner);
        name = format!("{tool}: {name}");
    }
    Check { name, command }
}

/// This machine's target as cargo's variables spell it.
fn target() -> &'static str {
    match (cfg!(windows), cfg!(target_arch = "aarch64")) {
        (true, _) => "X86_64_PC_WINDOWS_MSVC",
        (false, true) => "AARCH64_UNKNOWN_LINUX_GNU",
        (false, false) => "X86_64_UNKNOWN_LINUX_GNU",
    }
}

/// Whether a program is there.
fn starts(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

impl Check {
    fn run(mut self) -> Outcome {
        let start = std::time::Instant::now();
        let (passed, said) = match self.command.current_dir(shell::root()).output() {
            Ok(output) => {
                let streams = [output.stdout, output.stderr].concat();
                (output.status.success(), String::from_utf8_lossy(&streams).into_owned())
            }
            Err(error) => (false, error.to_string()),
        };
        Outcome { name: self.name, passed, seconds: start.elapsed().as_secs_f64(), said }
    }
}

/// The report: the device before and after, what passed and how long it took, figures, and in full what failed.
fn report(before: &Gpu, after: Option<&Gpu>, outcomes: &[Outcome]) -> String {
    let (major, minor) = before.capability;
    let fields = QUERY.trim_start_matches("--query-gpu=").split(',').skip(3).collect::<Vec<_>>();
    let mut text = format!(
        "# gradroute {} on a GPU\n\n{}, compute capability {major}.{minor}, driver {}\n\n{}\n\nbefore: {}\n",
        env!("CARGO_PKG_VERSION"),
        before.name,
        before.driver,
        fields.join(", "),
        before.state
    );
    let after = after.map_or("the device no longer answers", |gpu| &gpu.state);
    let _ = write!(text, "after: {after}\n\n| what | ended | seconds |\n|---|---|---|\n");
    for Outcome { name, passed, seconds, .. } in outcomes {
        let ended = if *passed { "passed" } else { "FAILED" };
        let _ = writeln!(text, "| {name} | {ended} | {seconds:.1} |");
    }
    for one in outcomes.iter().filter(|one| !one.passed || one.name.contains("bench")) {
        // Four backticks: output may hold three.
        let _ = write!(text, "\n## {}\n\n````text\n{}\n````\n", one.name, without_root(&one.said));
    }
    text
}

/// Output without where on the machine the checkout lies.
fn without_root(said: &str) -> String {
    let root: &Path = &shell::root();
    said.trim().replace(&root.display().to_string(), ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: &str =
        "NVIDIA H100 80GB HBM3, 9.0, 550.54, 81559 MiB, 345 MHz, 2619 MHz, 1980 MHz, 700 W, 31";

    #[test]
    fn devices_are_judged_by_what_the_driver_says() {
        let gpu = suitable(&format!("{H100}\nanother, 7.5, 1, 2\n")).unwrap();
        assert_eq!((gpu.name.as_str(), gpu.capability), ("NVIDIA H100 80GB HBM3", (9, 0)));
        assert_eq!((gpu.driver.as_str(), &gpu.state[..9]), ("550.54", "81559 MiB"));
        assert_eq!(suitable(""), Err(Missing::Device));
        let old = suitable("Tesla T4, 7.5, 535, 15360 MiB").unwrap_err();
        assert_eq!(old, Missing::Capability("Tesla T4".into(), (7, 5)));
        assert!(old.to_string().contains("7.5, the kernels need 8.0"));
        for strange in ["No devices were found", "A, x.y, 1, 2", "A, 9, 1, 2"] {
            assert_eq!(suitable(strange), Err(Missing::Strange(strange.into())));
        }
    }

    #[test]
    fn device_tests_must_run_and_sanitizers_stand_before_them() {
        let plain = test(&["--test", "cuda_probe"], None);
        assert_eq!(plain.name, "cargo test --release --test cuda_probe");
        let watched = test(&["--test", "ops", "--", "cuda_"], Some("racecheck"));
        assert!(watched.name.starts_with("racecheck: "));
        let variables = |check: &Check| -> String {
            check.command.get_envs().map(|pair| format!("{pair:?}")).collect()
        };
        assert!(variables(&plain).contains("GRADROUTE_REQUIRE_GPU"));
        assert!(!variables(&plain).contains("RUNNER"));
        assert!(variables(&watched).contains("compute-sanitizer --tool racecheck"));
    }

    #[test]
    fn what_failed_is_reported_in_full() {
        let gpu = suitable(H100).unwrap();
        let outcome = |name: &str, passed| Outcome {
            name: name.into(),
            passed,
            seconds: 1.25,
            said: format!("{} said {name}", shell::root().display()),
        };
        let outcomes = [outcome("good", true), outcome("bad", false), outcome("bench", true)];
        let text = report(&gpu, None, &outcomes);
        assert!(
            text.contains("| good | passed | 1.2 |") && text.contains("| bad | FAILED | 1.2 |")
        );
        assert!(text.contains(". said bad") && text.contains(". said bench"));
        assert!(!text.contains("said good") && text.contains("no longer answers"));
        assert!(text.contains("before: 81559 MiB, 345 MHz"));
    }

    #[test]
    fn a_program_that_cannot_start_is_a_failure() {
        let outcome = Check { name: "none".into(), command: Command::new("no-such-program") }.run();
        assert!(!outcome.passed && !outcome.said.is_empty());
        assert!(!starts("no-such-program"));
    }
}
