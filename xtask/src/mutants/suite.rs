//! The op suite in a copy of the tree, with kernels that are read from a folder.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Caught;
use crate::shell;

/// Stands in for the crate's own file in the copy.
const EMBEDDED: &str = include_str!("embedded.rs.txt");
/// The one file of the copy that differs.
const REPLACED: &str = "src/cuda/embedded.rs";
/// Warp instructions that a launch may take, so that a mutant that never ends is caught.
const LIMIT: &str = "200000000";
/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(7200);

/// The tests' programs, and the runner that puts softcuda in front.
pub struct Suite {
    softcuda: PathBuf,
    /// Those of the probe and of the ops.
    programs: [PathBuf; 2],
}

impl Suite {
    /// Copies the tree and builds the tests.
    pub fn build(folder: &Path) -> Result<Self> {
        let tree = folder.join("tree");
        copy(&tree)?;
        let target = folder.join("build");
        println!("building the suite in {}", super::FOLDER);
        let cargo = |arguments: &[&str]| {
            let mut command = shell::cargo();
            command.args(arguments).args(["--message-format", "json-render-diagnostics"]);
            command.current_dir(&tree).env("CARGO_TARGET_DIR", &target).env("NVCC", "off");
            let output = command.stderr(Stdio::inherit()).output()?;
            ensure!(output.status.success(), "the suite does not build");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let built = cargo(&[
            "test",
            "--release",
            "--no-run",
            "--package",
            "gradroute",
            "--test",
            "cuda_probe",
            "--test",
            "ops",
        ])?;
        cargo(&["build", "--release", "--package", "softcuda"])?;
        let program = |name: &str| {
            executable(&built, name).with_context(|| format!("cargo built no test {name}"))
        };
        let softcuda = target.join("release/softcuda");
        Ok(Self { softcuda, programs: [program("cuda_probe")?, program("ops")?] })
    }

    /// Runs tests on the kernels of a folder until one fails: the named ones on the problems whose name
    /// holds a word, or all.
    pub fn run(
        &self,
        kernels: &Path,
        tests: &[String],
        cases: Option<&str>,
    ) -> Result<Option<Caught>> {
        let [probe, ops] = &self.programs;
        if !tests.is_empty() {
            let mut arguments = vec!["--exact"];
            arguments.extend(tests.iter().map(String::as_str));
            return self.one(ops, kernels, &arguments, cases);
        }
        match self.one(probe, kernels, &[], None)? {
            None => self.one(ops, kernels, &["cuda_"], None),
            caught => Ok(caught),
        }
    }

    fn one(
        &self,
        program: &Path,
        kernels: &Path,
        arguments: &[&str],
        cases: Option<&str>,
    ) -> Result<Option<Caught>> {
        let mut command = Command::new(&self.softcuda);
        if let Some(word) = cases {
            command.env("GRADROUTE_CASES", word);
        }
        command.arg(program).args(arguments).current_dir(shell::root());
        command.env("GRADROUTE_MUTANT_KERNELS", kernels).env("GRADROUTE_REQUIRE_GPU", "1");
        command.env("SOFTCUDA_LIMIT", LIMIT);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let outcome = watch(&mut child);
        // It may have ended by itself.
        let _ = child.kill();
        child.wait()?;
        outcome
    }
}

/// A line of the tests' output, or of softcuda's.
enum Line {
    Test(String),
    Said(String),
}

/// Reads what the tests say until one fails or all are through.
fn watch(child: &mut Child) -> Result<Option<Caught>> {
    let (to, lines) = mpsc::channel();
    let (out, err) =
        (child.stdout.take().context("a pipe")?, child.stderr.take().context("a pipe")?);
    let said = to.clone();
    std::thread::spawn(move || {
        BufReader::new(err).lines().map_while(Result::ok).for_each(|line| {
            let _ = said.send(Line::Said(line));
        });
    });
    std::thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).for_each(|line| {
            let _ = to.send(Line::Test(line));
        });
    });
    let (mut check, mut passed, start) = (None, None, Instant::now());
    while let Ok(line) = lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
        match line {
            Line::Said(line) if check.is_none() => check = fault(&line),
            Line::Said(_) => {}
            Line::Test(line) => {
                if let Some(test) = failed(&line) {
                    // What ended the launch was said before, perhaps on its way still.
                    let late = lines.recv_timeout(Duration::from_millis(200));
                    if let (None, Ok(Line::Said(line))) = (&check, late) {
                        check = fault(&line);
                    }
                    return Ok(Some(Caught { test, check }));
                }
                passed = passed.or_else(|| result(&line));
            }
        }
    }
    match passed {
        Some(0) => anyhow::bail!("no test ran"),
        Some(_) => Ok(None),
        None => Ok(Some(Caught { test: "the run".into(), check: Some("does not end".into()) })),
    }
}

/// The test that a line says has failed.
fn failed(line: &str) -> Option<String> {
    Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_string())
}

/// How many tests passed, when all are through.
fn result(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ok. ")?.split_once(" passed")?.0.parse().ok()
}

/// What softcuda says of a launch: the check and the kernel.
fn fault(line: &str) -> Option<String> {
    let report = line.strip_prefix("softcuda: ").filter(|report| report.contains(" in kernel "))?;
    let end = report.find(" at ").unwrap_or(report.len());
    Some(report[..end].to_string())
}

/// Copies what git knows, or would know, of the tree; what is there already and the same, stays as it is.
fn copy(tree: &Path) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.current_dir(shell::root()).output().context("git lists the tree")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout)?;
    for file in listed.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (shell::root().join(file), tree.join(file));
        let Ok(mut bytes) = std::fs::read(&from) else { continue };
        if file == REPLACED {
            bytes = EMBEDDED.into();
        }
        if std::fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        std::fs::create_dir_all(to.parent().expect("it lies in the tree"))?;
        std::fs::write(to, bytes)?;
    }
    ensure!(
        tree.join(REPLACED).exists(),
        "{REPLACED} is gone: the suite embeds its kernels elsewhere"
    );
    Ok(())
}

/// The program of a test, in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"].as_str() == Some(name);
        message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(failed("test a::b ... FAILED").as_deref(), Some("a::b"));
        assert_eq!(failed("test a::b ... ok"), None);
        assert_eq!(result("test result: ok. 7 passed; 0 failed; 0 ignored"), Some(7));
        assert_eq!(result("test result: FAILED. 1 passed; 1 failed"), None);
        let race = "softcuda: SharedRace in kernel reduce at (PTX line 7), block [0, 0, 0]";
        assert_eq!(fault(race).as_deref(), Some("SharedRace in kernel reduce"));
        assert_eq!(fault("softcuda: cuFuncGet is not supported"), None);
    }

    #[test]
    fn a_program_is_found_by_its_name() {
        let messages = "not json\n{\"target\":{\"name\":\"ops\"},\"executable\":\"/t/ops-1\"}\n";
        assert_eq!(executable(messages, "ops"), Some(PathBuf::from("/t/ops-1")));
        assert_eq!(executable(messages, "cuda_probe"), None);
    }
}
