//! Results on disk, so that what was measured is not measured again.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};

/// Between two lines where the bar is hidden.
const QUIET: Duration = Duration::from_secs(30);

/// Makes the folder, or checks that what it holds was measured in the same way.
pub fn prepare(folder: &Path, setup: &Value) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("setup.json");
    match std::fs::read_to_string(&path) {
        Ok(found) => {
            let found: Map<String, Value> = serde_json::from_str(&found)
                .with_context(|| format!("{}: no setup; move the folder away", path.display()))?;
            same(&found, setup).with_context(|| {
                format!("{}: move its results away or choose another --out", folder.display())
            })?;
        }
        Err(none) if none.kind() == ErrorKind::NotFound => {}
        Err(mistake) => return Err(mistake).with_context(|| path.display().to_string()),
    }
    // Also where a key was missing, so that it is compared from now on.
    let text = serde_json::to_string_pretty(setup)?;
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// Refuses what was found with another value. Setups used to say less: what they lack counts as the same.
fn same(found: &Map<String, Value>, setup: &Value) -> Result<()> {
    for (key, value) in found {
        match setup.get(key) {
            Some(now) if now == value => {}
            Some(now) => bail!("results of another setup lie here: {key} was {value}, it is {now}"),
            None => {
                bail!("results of another setup lie here: {key} was {value}, now there is none")
            }
        }
    }
    Ok(())
}

/// The first `count` rows of a table of `f32` at `path`, of `width` numbers each. Rows that are
/// not there yet are made and appended, with a progress bar.
pub fn rows(
    path: &Path,
    width: usize,
    count: usize,
    mut row: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<Vec<Vec<f32>>> {
    let mut table = kept(path, width, count)?;
    let have = table.len();
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bar = ProgressBar::new(count as u64).with_position(have as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} · {msg} · {eta} left")?);
    bar.set_message(name.clone());
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    if have < count {
        file.set_len((have * 4 * width) as u64)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    }
    let mut said = Instant::now();
    for at in have..count {
        let values = row(at)?;
        ensure!(values.len() == width, "{} numbers where {width} belong", values.len());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).with_context(|| path.display().to_string())?;
        table.push(values);
        bar.inc(1);
        if bar.is_hidden() && said.elapsed() >= QUIET {
            // Not at a terminal: a line now and then instead of the bar.
            println!("{}/{count} · {name}", at + 1);
            said = Instant::now();
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// The first rows that are there already, at most `count`. One that was cut off does not count.
fn kept(path: &Path, width: usize, count: usize) -> Result<Vec<Vec<f32>>> {
    let mut bytes = Vec::new();
    if path.exists() {
        File::open(path)?.read_to_end(&mut bytes)?;
    }
    let row = |row: &[u8]| {
        row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Ok(bytes.chunks_exact(4 * width).take(count).map(row).collect())
}

/// Writes a result whole or not at all.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let open = path.with_extension("json.tmp");
    let write = || -> Result<()> {
        std::fs::write(&open, serde_json::to_vec(value)?)?;
        Ok(std::fs::rename(&open, path)?)
    };
    write().with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_setup_that_said_less_is_accepted_and_completed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        prepare(path, &json!({ "samples": 3 })).unwrap();
        let now = json!({ "samples": 3, "rate": 6e-3, "eps": 1e-8, "decay": 0.99 });
        prepare(path, &now).unwrap();
        prepare(path, &now).unwrap();
        let other = json!({ "samples": 3, "rate": 7e-3, "eps": 1e-8, "decay": 0.99 });
        let said = format!("{:#}", prepare(path, &other).unwrap_err());
        assert!(said.contains("rate was 0.006, it is 0.007") && said.contains("--out"), "{said}");
        assert!(prepare(path, &json!({ "samples": 3 })).is_err());
    }

    #[test]
    fn rows_are_made_once_and_what_was_cut_off_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.f32");
        let make = |at: usize| Ok(vec![at as f32; 2]);
        assert_eq!(rows(&path, 2, 2, make).unwrap(), [[0.0; 2], [1.0; 2]]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(12).unwrap();
        let mut made = Vec::new();
        let again = |at: usize| {
            made.push(at);
            make(at)
        };
        assert_eq!(rows(&path, 2, 3, again).unwrap(), [[0.0; 2], [1.0; 2], [2.0; 2]]);
        assert_eq!(made, [1, 2]);
    }
}
