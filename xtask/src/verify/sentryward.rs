//! sentryward's verdict on a launch.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// Seconds that a launch may take.
const PATIENCE: &str = "900";

/// What it said.
#[derive(Debug, PartialEq)]
pub struct Said {
    result: String,
    /// Codes of its diagnostics.
    codes: Vec<String>,
}

impl Said {
    /// Whether the launch is proven, or the tool gave up, which it says with the allowed code alone.
    pub fn is_fine(&self, allowed: Option<&str>) -> bool {
        match allowed {
            None => self.result == "race_free",
            Some(code) => {
                let only = !self.codes.is_empty() && self.codes.iter().all(|said| said == code);
                self.result == "unsupported" && only
            }
        }
    }

    fn of(output: &Value) -> Result<Self> {
        let result = output["result"].as_str().context("a verdict")?.to_string();
        let diagnostics = output["diagnostics"].as_array().cloned().unwrap_or_default();
        let codes = diagnostics.iter().filter_map(|one| Some(one["code"].as_str()?.to_string()));
        let mut codes: Vec<String> = codes.collect();
        codes.dedup();
        Ok(Self { result, codes })
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.result.replace('_', " "))?;
        if !self.codes.is_empty() && self.result != "race_free" {
            write!(f, " ({})", self.codes.join(", "))?;
        }
        Ok(())
    }
}

/// Verifies a launch. The exit code says nothing.
pub fn verify(bin: &Path, folder: &Path, ptx: &str, input: &Value) -> Result<Said> {
    let [text, description] = ["kernel.ptx", "input.json"].map(|name| folder.join(name));
    std::fs::write(&text, plain_inserts(ptx))?;
    std::fs::write(&description, input.to_string())?;
    let mut command = Command::new(bin.join("sentryward"));
    command.arg(&text).arg("--input").arg(&description).args(["--timeout", PATIENCE]);
    let output = command.output().context("sentryward starts")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = serde_json::from_str(&said)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Said::of(&said)
}

/// The text with insertions of bit fields up to the highest bit spelled out: the tool does not compute
/// those, and so takes what depends on them for data.
fn plain_inserts(ptx: &str) -> String {
    ptx.lines().map(|line| insert(line).unwrap_or_else(|| line.to_string()) + "\n").collect()
}

fn insert(line: &str) -> Option<String> {
    let operands = line.trim().strip_prefix("bfi.b32")?.trim().strip_suffix(';')?;
    let operands: Vec<&str> = operands.split(',').map(str::trim).collect();
    let [to, from, into, begin, length] = operands[..] else { return None };
    let (begin, length): (u32, u32) = (begin.parse().ok()?, length.parse().ok()?);
    (begin + length == 32).then(|| {
        let mask = (1_u64 << begin) - 1;
        format!(
            "{{ .reg .b32 %kept; and.b32 %kept, {into}, {mask}; shl.b32 {to}, {from}, {begin}; \
             or.b32 {to}, {to}, %kept; }}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_more_than_an_exit_code() {
        let said = |text: &str| Said::of(&serde_json::from_str(text).unwrap()).unwrap();
        let free = said(r#"{"result":"race_free","diagnostics":[]}"#);
        assert!(free.is_fine(None) && !free.is_fine(Some("x")));
        let gave_up = said(r#"{"result":"unsupported","diagnostics":[{"code":"x"}]}"#);
        assert!(
            gave_up.is_fine(Some("x")) && !gave_up.is_fine(Some("y")) && !gave_up.is_fine(None)
        );
        let race = said(r#"{"result":"potential_race","diagnostics":[{"code":"x"}]}"#);
        assert!(!race.is_fine(None) && !race.is_fine(Some("x")));
        assert!(Said::of(&serde_json::json!({})).is_err());
    }

    #[test]
    fn insertions_are_spelled_out() {
        let spelled = insert("\tbfi.b32 \t%r3, %r7, %r2, 5, 27;").unwrap();
        assert!(spelled.contains("and.b32 %kept, %r2, 31; shl.b32 %r3, %r7, 5;"), "{spelled}");
        assert_eq!(insert("bfi.b32 %r3, %r7, %r2, 3, 5;"), None);
        assert_eq!(insert("add.s32 %r1, %r2, %r3;"), None);
    }
}
