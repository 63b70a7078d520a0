//! One run: started, continued, or read.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Arguments, Outcome, Variant};
use crate::shell;

pub struct Run<'a> {
    pub variant: Variant,
    pub group: &'a str,
    pub seed: u64,
}

/// How long a run trains, as its `run.json` has it, too.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
struct Length {
    steps: u64,
    /// Steps of learning the group again.
    relearn: Option<u64>,
}

impl Length {
    fn of(outcome: &Outcome) -> Self {
        let relearn = outcome.relearning.first().and_then(|curve| curve.steps.last().copied());
        Self { steps: outcome.steps, relearn }
    }

    /// Refuses what was trained for `self` where `asked` is asked for; `remove` is what holds it.
    fn check(self, asked: Self, remove: &str) -> Result<()> {
        ensure!(
            self == asked,
            "{remove} was trained with {self}, not with {asked}: ask for the same, or remove {remove} to train anew"
        );
        Ok(())
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--steps {}", self.steps)?;
        self.relearn.map_or(Ok(()), |steps| write!(f, " --relearn {steps}"))
    }
}

impl Run<'_> {
    fn name(&self) -> String {
        let (name, seed) = (self.variant.name(), self.seed);
        match self.variant {
            Variant::Unrouted => format!("{name}-{seed}"),
            _ => format!("{name}-{}-{seed}", self.group),
        }
    }

    /// Where stands what it came to, in the workspace.
    fn kept(&self) -> String {
        format!("benches/record/attenuation/{}.json", self.name())
    }

    /// Where it runs, in the workspace.
    fn folder(&self) -> String {
        format!("runs/evaluate/attenuation/{}", self.name())
    }

    /// What it came to.
    pub fn outcome(&self) -> Result<Outcome> {
        read(&shell::root().join(self.kept()))
    }

    /// What is finished or begun goes on as it was begun: that must be as it is asked for.
    pub fn check(&self, arguments: &Arguments) -> Result<()> {
        let relearn = (self.variant != Variant::Unrouted).then_some(arguments.relearn);
        let asked = Length { steps: arguments.steps, relearn };
        let (kept, folder) = (self.kept(), self.folder());
        let begun = shell::root().join(&folder).join("run.json");
        if shell::root().join(&kept).exists() {
            let remove = if begun.exists() { format!("{kept} with {folder}") } else { kept };
            return Length::of(&self.outcome()?).check(asked, &remove);
        }
        if begun.exists() && !arguments.no_runs {
            return read::<Length>(&begun)?.check(asked, &folder);
        }
        Ok(())
    }

    /// Starts it, continues it where it was interrupted, or leaves it as it is; keeps what it came to.
    pub fn train(&self, arguments: &Arguments, threads: usize) -> Result<()> {
        let kept = shell::root().join(self.kept());
        if kept.exists() {
            println!("{}: finished", self.name());
            return Ok(());
        }
        let out = shell::root().join(self.folder());
        let result = out.join("result.json");
        if !result.exists() {
            shell::run(&mut self.command(&out, arguments, threads))?;
        }
        fs::create_dir_all(kept.parent().expect("a file of a folder"))?;
        let outcome: Outcome = read(&result)?;
        Ok(fs::write(kept, serde_json::to_string_pretty(&outcome)? + "\n")?)
    }

    /// The example that starts or continues it.
    fn command(&self, out: &Path, arguments: &Arguments, threads: usize) -> Command {
        let program: PathBuf = shell::root().join("target/release/examples/glyph_diffusion");
        let mut example = Command::new(program);
        example.env("RAYON_NUM_THREADS", threads.to_string()).arg("--out").arg(out);
        if out.join("run.json").exists() {
            example.arg("--resume");
            return example;
        }
        // Few commits, since nobody asks these ledgers anything.
        example.args(self.variant.options()).args(["--no-report", "--commit-every", "600"]);
        example.args(["--own", self.group, "--seed", &self.seed.to_string()]);
        example.args(["--steps", &arguments.steps.to_string()]);
        if self.variant != Variant::Unrouted {
            example.args(["--relearn", &arguments.relearn.to_string()]);
        }
        example
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(relearning: &str) -> Outcome {
        let losses = r#"{"public": 1, "public_region_on": 1, "owned_no_style": 1, "owned": []}"#;
        let text = format!(
            r#"{{"steps": 2400, "train_seconds": 1, "parameters": 1, "policy_hash": null,
                "losses": {losses}, "relearning": {relearning}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_run_of_another_length_is_refused() {
        let curve = r#"[{"from": "dial at 0", "steps": [0, 4, 512], "losses": [1, 1, 1]}]"#;
        let (routed, unrouted) = (Length::of(&outcome(curve)), Length::of(&outcome("[]")));
        let asked = |steps, relearn| Length { steps, relearn };
        routed.check(asked(2400, Some(512)), "all-1.json").unwrap();
        unrouted.check(asked(2400, None), "unrouted-1.json").unwrap();
        for other in [asked(100, Some(512)), asked(2400, Some(64))] {
            let said = routed.check(other, "all-1.json").unwrap_err().to_string();
            assert!(said.contains("--steps 2400 --relearn 512, not with"), "{said}");
            assert!(said.contains("remove all-1.json"), "{said}");
        }
        assert!(unrouted.check(asked(100, None), "unrouted-1.json").is_err());
        // Kept from before anything was learned again.
        assert!(unrouted.check(asked(2400, Some(512)), "all-1.json").is_err());
    }

    #[test]
    fn a_begun_run_has_its_length_from_its_options() {
        let begun: Length =
            serde_json::from_str(r#"{"policy": "all", "relearn": 64, "steps": 100}"#).unwrap();
        assert_eq!(begun, Length { steps: 100, relearn: Some(64) });
    }
}
