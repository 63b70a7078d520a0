//! What cuxray reads in the machine code of the kernels.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The architecture whose code is read: that of the PTX.
const ARCHITECTURE: &str = "sm_80";

/// Lines of the table for all kernels of a build, and spills, which none may have.
pub fn rows(
    bin: &Path,
    cuda_home: &Path,
    images: &Path,
    sources: &[String],
) -> Result<(String, Vec<String>)> {
    let (mut rows, mut spills) = (BTreeMap::new(), Vec::new());
    for source in sources {
        let image = images.join(format!("{source}.fatbin"));
        let mut command = Command::new(bin.join("cuxray"));
        command.arg("report").arg(&image).args(["--json", "--fast"]).env("CUDA_HOME", cuda_home);
        let output = command.output().context("cuxray starts")?;
        ensure!(output.status.success(), "cuxray: {}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout)?;
        read(&said, &mut rows, &mut spills)
            .with_context(|| format!("cuxray on {}", image.display()))?;
    }
    Ok((rows.into_values().collect(), spills))
}

/// Adds the kernels of a report.
fn read(said: &Value, rows: &mut BTreeMap<String, String>, spills: &mut Vec<String>) -> Result<()> {
    let units = said["units"].as_array().context("units")?;
    let ours = |unit: &&Value| unit["arch"] == ARCHITECTURE;
    let unit = units.iter().find(ours).with_context(|| format!("no code for {ARCHITECTURE}"))?;
    for kernel in unit["kernels"].as_array().context("kernels")? {
        let name = kernel["name"].as_str().context("a name")?;
        let number = |part: &str, field: &str| {
            let value = kernel[part][field].as_u64();
            value.with_context(|| format!("{name}: no {part}.{field}"))
        };
        let access = |field: &str| number("access", field);
        let spilled =
            number("spills", "store_instructions")? + number("spills", "load_instructions")?;
        if spilled > 0 {
            spills.push(format!("{name} spills"));
        }
        let known = access("analyzed_count")?;
        let row = format!(
            "| {name} | {spilled} | {} | {} | {} | {known} / {} |\n",
            access("worst_bank_conflict_ways")?,
            access("conflicted_shared_accesses")?,
            access("uncoalesced_global_accesses")?,
            known + access("unanalyzed_count")?,
        );
        rows.insert(name.to_string(), row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = |spills: u32| {
            serde_json::json!({ "units": [{ "arch": "sm_80", "kernels": [{ "name": "k",
                "spills": { "store_instructions": spills, "load_instructions": 0 },
                "access": { "analyzed_count": 3, "unanalyzed_count": 1, "worst_bank_conflict_ways": 2,
                    "conflicted_shared_accesses": 1, "uncoalesced_global_accesses": 0 } }] }] })
        };
        let (mut rows, mut spills) = (BTreeMap::new(), Vec::new());
        read(&report(0), &mut rows, &mut spills).unwrap();
        assert_eq!(rows["k"], "| k | 0 | 2 | 1 | 0 | 3 / 4 |\n");
        assert!(spills.is_empty());
        read(&report(2), &mut rows, &mut spills).unwrap();
        assert_eq!(spills, ["k spills"]);
        assert!(read(&serde_json::json!({ "units": [] }), &mut rows, &mut spills).is_err());
    }
}
