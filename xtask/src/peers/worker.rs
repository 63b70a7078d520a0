//! A program that runs passes when asked: JSON lines to it and back.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::participants::{Participant, Side};
use super::workloads::Workload;
use super::{Setting, cores, shell};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Builds our side's program; where it lies.
pub fn build_ours() -> Result<PathBuf> {
    let arguments = ["build", "--release", "--bench", "peers", "--message-format=json"];
    let output = shell::cargo().args(arguments).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("building benches/peers ended with {}", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo named no executable")
}

/// The path in cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    let each = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut named = each.filter(|message| message["target"]["name"] == "peers");
    named.find_map(|message| Some(message["executable"].as_str()?.into()))
}

/// A running program.
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

/// What a pass took, and its loss.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Pass {
    pub wall_ms: f64,
    pub cpu_ms: f64,
    pub loss: f64,
}

/// Memory after the setup, and at most since then.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Memory {
    pub before_bytes: u64,
    pub peak_bytes: u64,
}

impl Worker {
    /// Starts the program of a participant's side; every library in it gets so many threads, and all
    /// programs the same cores.
    /// What it says beside its answers goes to a log.
    pub fn start(setting: &Setting, side: Side, log: &str, threads: usize) -> Result<Self> {
        let cores = cores::chosen(threads);
        let (program, argument) = match side {
            Side::Ours => (&setting.ours, "--worker".into()),
            Side::Python => (&setting.python, shell::root().join("xtask/peers/worker.py")),
        };
        let mut command = cores::on(cores.as_deref(), program);
        command.arg(argument);
        for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        if let (Side::Ours, Some(blas)) = (side, &setting.blas) {
            command.env("GRADROUTE_BLAS", blas);
        }
        shell::keep_memory(&mut command);
        // As everywhere in this workspace; candle's own threads compute nothing here.
        command.env("CANDLE_NUM_THREADS", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        let log = File::create(setting.folder.join(format!("{log}.log")))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let shown = format!("{command:?}");
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let requests = child.stdin.take().context("a pipe to the program")?;
        let lines = BufReader::new(child.stdout.take().context("a pipe from the program")?).lines();
        let (send, answers) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).take_while(|line| send.send(line.clone()).is_ok()).count()
        });
        Ok(Self { child, requests, answers })
    }

    /// Hands the workload on; parameters and inputs come from the file, or on our side from the
    /// workload itself.
    pub fn setup(
        &mut self,
        setting: &Setting,
        workload: &Workload,
        method: &str,
        file: &Path,
    ) -> Result<()> {
        let request = json!({
            "do": "setup",
            "workload": workload.whole,
            "method": method,
            "dtype": setting.format.name(),
            "file": file,
            "memory_bytes": setting.memory_bytes,
        });
        self.ask(&request).map(drop)
    }

    /// A pass.
    pub fn pass(&mut self) -> Result<Pass> {
        Ok(serde_json::from_value(self.ask(&json!({ "do": "run" }))?)?)
    }

    /// What it took of memory.
    pub fn memory(&mut self) -> Result<Memory> {
        Ok(serde_json::from_value(self.ask(&json!({ "do": "memory" }))?)?)
    }

    /// A list of numbers under this name.
    pub fn numbers(&mut self, request: &Value, name: &str) -> Result<Vec<f64>> {
        let answer = self.ask(request)?;
        serde_json::from_value(answer[name].clone()).context("numbers in the answer")
    }

    /// A request and its answer; an answer that is an error is one here, too.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        if writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).is_err() {
            bail!("ended by itself ({})", self.end());
        }
        let Ok(line) = self.answers.recv_timeout(PATIENCE) else {
            bail!("no answer: {}", self.end());
        };
        let answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        match answer["error"].as_str() {
            Some(mistake) => bail!("{mistake}"),
            None => Ok(answer),
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn end(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            _ => format!("stopped after {} s", PATIENCE.as_secs()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It holds nothing that could be lost.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A started participant on a workload.
pub fn begin(
    setting: &Setting,
    peer: &Participant,
    workload: &Workload,
    file: &Path,
    threads: usize,
) -> Result<Worker> {
    let log = format!("{:?}-{}", peer.side, peer.method).to_lowercase();
    let mut worker = Worker::start(setting, peer.side, &log, threads)?;
    worker.setup(setting, workload, peer.method, file)?;
    Ok(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"rayon"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"peers"},"executable":"/there/peers-1"}"#;
        assert_eq!(executable(messages), Some("/there/peers-1".into()));
        assert_eq!(executable("{}"), None);
    }
}
