//! `cargo xtask gpu`: first contact with a real GPU, and one report file to send.
//!
//! Everything is built first. Then everything runs whatever fails, the slow sanitizers last, so that one
//! visit says as much as it can.

use std::fmt;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{kernels, shell};

const REPORT: &str = "runs/gpu-report.md";
/// The folder of what each check says.
const LOGS: &str = "runs/gpu";
/// The tests that run on the device.
const TESTS: [&[&str]; 3] =
    [&["--test", "cuda_probe"], &["--test", "cuda_run"], &["--test", "ops", "--", "cuda_"]];
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
    ended: Ended,
    seconds: f64,
    said: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Passed,
    Failed,
    TimedOut,
}

/// Checks the device, builds and runs everything on it, each check for so many minutes at most, and writes the
/// report.
pub fn run(limit_minutes: u64) -> Result<()> {
    let before = device()?;
    println!("{}, driver {}", before.name, before.driver);
    ensure!(kernels::compiler()?.is_some(), "NVCC=off leaves no kernels to run");
    let limit = Duration::from_secs(limit_minutes.saturating_mul(60));
    for mut command in builds() {
        shell::run(&mut command)?;
    }
    let (file, logs) = (shell::root().join(REPORT), shell::root().join(LOGS));
    if logs.exists() {
        // What an earlier run said is not to be taken for this one's.
        fs::remove_dir_all(&logs)?;
    }
    fs::create_dir_all(&logs)?;
    let mut outcomes = Vec::new();
    for (number, check) in checks().into_iter().enumerate() {
        let log = format!("{}-{}.log", number + 1, file_name(&check.name));
        println!("── {} ({LOGS}/{log})", check.name);
        outcomes.push(check.run(&logs.join(log), limit));
        // Each time, so that whoever stops here has a report too.
        fs::write(&file, report(&before, device().ok().as_ref(), &outcomes))?;
    }
    println!("the report is {REPORT}");
    let failed = outcomes.iter().filter(|one| one.ended != Ended::Passed);
    let failed: Vec<&str> = failed.map(|one| one.name.as_str()).collect();
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

/// Builds all that [`checks`] runs, so that no check spends its time on it.
fn builds() -> Vec<Command> {
    let mut tests = shell::cargo();
    tests.args(["test", "--release", "--no-run"]).args(TESTS.iter().flat_map(|test| &test[..2]));
    let mut bench = shell::cargo();
    bench.args(["bench", "--no-run", "--bench", "cuda"]);
    vec![tests, bench]
}

/// Everything that runs on the device: the tests, the bench, and where compute-sanitizer is there the tests
/// under each of its tools.
fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = TESTS.iter().map(|arguments| test(arguments, None)).collect();
    checks.push(bench());
    if starts("compute-sanitizer") {
        for tool in ["memcheck", "racecheck", "synccheck", "initcheck"] {
            checks.extend(TESTS.iter().map(|arguments| test(arguments, Some(tool))));
        }
    }
    checks
}

/// The bench, which must not turn to the CPU.
fn bench() -> Check {
    let mut command = shell::cargo();
    command.args(["bench", "--bench", "cuda", "--", "--table"]).env("GRADROUTE_REQUIRE_GPU", "1");
    Check { name: "cargo bench --bench cuda -- --table".into(), command }
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

/// A check's name as a file's.
fn file_name(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

impl Check {
    /// Runs it no longer than this. What it says goes to the log as it comes.
    fn run(mut self, log: &Path, limit: Duration) -> Outcome {
        let start = Instant::now();
        let status = self.status(log, limit);
        let mut said = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        let ended = match status {
            Ok(Some(status)) if status.success() => Ended::Passed,
            Ok(Some(_)) => Ended::Failed,
            Ok(None) => Ended::TimedOut,
            Err(error) => {
                said += &error.to_string();
                Ended::Failed
            }
        };
        Outcome { name: self.name, ended, seconds: start.elapsed().as_secs_f64(), said }
    }

    /// `None` if it did not end in time.
    fn status(&mut self, log: &Path, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let file = File::create(log)?;
        self.command.current_dir(shell::root()).stdout(file.try_clone()?).stderr(file);
        let (mut child, start) = (self.command.spawn()?, Instant::now());
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if start.elapsed() >= limit {
                end(&mut child)?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Ends a program and, on Linux, what it started: cargo alone would leave the test on the device.
fn end(child: &mut Child) -> io::Result<()> {
    let started = descendants(child.id());
    child.kill()?;
    child.wait()?;
    if !started.is_empty() {
        let started = started.iter().map(u32::to_string);
        // Fails for those that are gone by now.
        Command::new("kill").arg("-KILL").args(started).output()?;
    }
    Ok(())
}

/// The processes that a process started, and so on; none where there is no /proc.
fn descendants(of: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect();
    children.iter().flat_map(|&child| [vec![child], descendants(child)].concat()).collect()
}

/// The report: the device before and after, what passed and how long it took, figures, and in full what failed
/// or was too slow.
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
    for Outcome { name, ended, seconds, .. } in outcomes {
        let ended = match ended {
            Ended::Passed => "passed",
            Ended::Failed => "FAILED",
            Ended::TimedOut => "TIMED OUT",
        };
        let _ = writeln!(text, "| {name} | {ended} | {seconds:.1} |");
    }
    let quoted = |one: &&Outcome| one.ended != Ended::Passed || one.name.contains("bench");
    for one in outcomes.iter().filter(quoted) {
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
        assert!(variables(&bench()).contains("GRADROUTE_REQUIRE_GPU"));
        assert_eq!(file_name(&watched.name), "racecheck-cargo-test-release-test-ops-cuda_");
    }

    #[test]
    fn what_failed_is_reported_in_full() {
        let gpu = suitable(H100).unwrap();
        let outcome = |name: &str, ended| Outcome {
            name: name.into(),
            ended,
            seconds: 1.25,
            said: format!("{} said {name}", shell::root().display()),
        };
        let outcomes = [
            outcome("good", Ended::Passed),
            outcome("bad", Ended::Failed),
            outcome("slow", Ended::TimedOut),
            outcome("bench", Ended::Passed),
        ];
        let text = report(&gpu, None, &outcomes);
        assert!(
            text.contains("| good | passed | 1.2 |") && text.contains("| bad | FAILED | 1.2 |")
        );
        assert!(text.contains("| slow | TIMED OUT | 1.2 |") && text.contains(". said slow"));
        assert!(text.contains(". said bad") && text.contains(". said bench"));
        assert!(!text.contains("said good") && text.contains("no longer answers"));
        assert!(text.contains("before: 81559 MiB, 345 MHz"));
    }

    /// Runs a check with a log that does not stay.
    fn run_logged(check: Check, limit: Duration) -> Outcome {
        let log = std::env::temp_dir().join(format!("gpu-{}-{}", check.name, std::process::id()));
        let outcome = check.run(&log, limit);
        fs::remove_file(log).unwrap();
        outcome
    }

    #[test]
    fn a_program_that_cannot_start_is_a_failure() {
        let check = Check { name: "none".into(), command: Command::new("no-such-program") };
        let outcome = run_logged(check, Duration::MAX);
        assert!(outcome.ended == Ended::Failed && !outcome.said.is_empty());
        assert!(!starts("no-such-program"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_check_that_is_too_slow_is_ended_with_what_it_started() {
        let mut command = Command::new("sh");
        // The shell waits, as cargo does; what it started would hold the device.
        command.args(["-c", "echo begun; sleep 600 & echo $!; wait"]);
        let check = Check { name: "slow".into(), command };
        let outcome = run_logged(check, Duration::from_secs(1));
        assert_eq!(outcome.ended, Ended::TimedOut);
        let (begun, started) = outcome.said.split_once('\n').unwrap();
        assert_eq!(begun, "begun");
        let runs = || {
            let state = fs::read_to_string(format!("/proc/{}/stat", started.trim()));
            state.is_ok_and(|state| !state.contains(") Z "))
        };
        // The kernel takes its time.
        for _ in 0..100 {
            if runs() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        assert!(!runs());
    }
}
