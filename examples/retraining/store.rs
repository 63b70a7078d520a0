//! Results on disk, so that what was measured is not measured again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Makes the folder, or checks that what it holds was measured in the same way.
pub fn prepare(folder: &Path, setup: &impl Serialize) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("setup.json");
    let setup = serde_json::to_string_pretty(setup)?;
    match std::fs::read_to_string(&path) {
        Ok(found) => ensure!(
            found == setup,
            "{}: results of another setup lie here; move them away or choose another --out",
            folder.display()
        ),
        Err(_) => std::fs::write(&path, setup).with_context(|| path.display().to_string())?,
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
    let mut bytes = Vec::new();
    if path.exists() {
        File::open(path)?.read_to_end(&mut bytes)?;
    }
    // A row that was cut off does not count.
    let have = (bytes.len() / (4 * width)).min(count);
    let mut table: Vec<Vec<f32>> = (bytes.chunks_exact(4 * width).take(count))
        .map(|row| row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
        .map(Iterator::collect)
        .collect();
    let bar = ProgressBar::new(count as u64).with_position(have as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} · {msg} · {eta} left")?);
    bar.set_message(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    if have < count {
        file.set_len((have * 4 * width) as u64)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    }
    for at in have..count {
        let values = row(at)?;
        ensure!(values.len() == width, "{} numbers where {width} belong", values.len());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).with_context(|| path.display().to_string())?;
        table.push(values);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(table)
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
