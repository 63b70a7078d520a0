//! What programs and people can read about launches: the last fault, and the counters.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use super::boundary::{Out, call};
use super::error::Status;
use super::state::lock;
use crate::counters::{COUNTERS, Counters};
use crate::fault::Report;
use crate::ir::Kernel;
use crate::machine::Launch;

static LAST: Mutex<Option<Report>> = Mutex::new(None);
static KEEP: AtomicBool = AtomicBool::new(false);
static KEPT: Mutex<Vec<Value>> = Mutex::new(Vec::new());

/// Prints a fault and keeps it.
pub fn publish(report: &Report) {
    eprintln!("softcuda: {report}");
    *lock(&LAST) = Some(report.clone());
}

/// The last fault of any launch.
pub fn last_report() -> Option<Report> {
    lock(&LAST).clone()
}

/// Starts to keep the counters of launches, for [`take_counters`].
pub fn keep_counters() {
    lock(&KEPT).clear();
    KEEP.store(true, Ordering::Relaxed);
}

/// Counters of every launch since [`keep_counters`] or the last call of this, as JSON objects.
pub fn take_counters() -> Vec<Value> {
    std::mem::take(&mut lock(&KEPT))
}

/// The file that `SOFTCUDA_COUNTERS` names.
fn file() -> Option<&'static Mutex<File>> {
    static FILE: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    let open = || {
        let path = std::env::var("SOFTCUDA_COUNTERS").ok().filter(|path| !path.is_empty())?;
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(Mutex::new(file)),
            Err(error) => {
                eprintln!("softcuda: SOFTCUDA_COUNTERS={path}: {error}");
                None
            }
        }
    };
    FILE.get_or_init(open).as_ref()
}

/// Takes down what a launch counted.
pub fn count(launch: &Launch<'_>, counters: &Counters) {
    let keep = KEEP.load(Ordering::Relaxed);
    let file = file();
    if !keep && file.is_none() {
        return;
    }
    let row = row(launch, counters);
    if let Some(file) = file
        && let Err(error) = writeln!(lock(file), "{row}")
    {
        eprintln!("softcuda: counters not written: {error}");
    }
    if keep {
        lock(&KEPT).push(row);
    }
}

/// One launch as a JSON object.
pub fn row(launch: &Launch<'_>, counters: &Counters) -> Value {
    let kernel = launch.kernel;
    let totals: Map<String, Value> =
        counters.totals().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
    let classes: Map<String, Value> = counters
        .by_class(kernel)
        .into_iter()
        .map(|(class, n)| (format!("{class:?}").to_lowercase(), n.into()))
        .collect();
    json!({
        "launch": launch.number,
        "kernel": kernel.name,
        "grid": launch.grid,
        "block": launch.block,
        "cluster": launch.cluster,
        "static_shared": kernel.shared_bytes,
        "dynamic_shared": launch.dynamic_shared,
        "totals": totals,
        "classes": classes,
        "lines": lines(kernel, counters),
    })
}

/// Every line that counted something, in the program's order.
fn lines(kernel: &Kernel, counters: &Counters) -> Vec<Value> {
    let mut rows: Vec<(Value, Map<String, Value>)> = Vec::new();
    for &(counter, name) in &COUNTERS {
        for (line, n) in counters.by_line(kernel, counter) {
            let place = match &line.source {
                Some((file, number)) => json!({ "file": file, "line": number }),
                None => json!({ "ptx": line.ptx }),
            };
            let row = match rows.iter_mut().position(|(known, _)| *known == place) {
                Some(index) => &mut rows[index].1,
                None => {
                    rows.push((place, Map::new()));
                    &mut rows.last_mut().expect("just pushed").1
                }
            };
            row.insert(name.to_owned(), n.into());
        }
    }
    let merge = |(place, counts): (Value, Map<String, Value>)| {
        let Value::Object(mut row) = place else { unreachable!("made as an object") };
        row.extend(counts);
        Value::Object(row)
    };
    rows.into_iter().map(merge).collect()
}

/// Copies text with its final zero as far as there is room; the length it needs with the zero.
fn hand_out(text: &str, into: Out<u8>, room: usize) -> usize {
    let length = text.len().min(room.saturating_sub(1));
    if room > 0 && !into.is_null() {
        let bytes = text.bytes().take(length).chain([0]);
        // Bytes are never misaligned, and null was excluded.
        let _ = bytes.enumerate().try_for_each(|(index, byte)| into.set_at(index, byte));
    }
    text.len() + 1
}

/// The last fault's report, empty if there was none. Returns the bytes it needs with its final zero.
#[unsafe(no_mangle)]
extern "C" fn softcuda_last_report(into: Out<u8>, room: usize) -> usize {
    let text = last_report().map_or(String::new(), |report| report.to_string());
    hand_out(&text, into, room)
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_keep_counters() -> Status {
    call("softcuda_keep_counters", || {
        keep_counters();
        Ok(())
    })
}

/// The counters kept as a JSON array. Returns the bytes it needs with its final zero; only if there is room
/// for all of it, the counters are taken away.
#[unsafe(no_mangle)]
extern "C" fn softcuda_take_counters(into: Out<u8>, room: usize) -> usize {
    let mut kept = lock(&KEPT);
    let text = Value::Array(kept.clone()).to_string();
    let needed = hand_out(&text, into, room);
    if needed <= room && !into.is_null() {
        kept.clear();
    }
    needed
}

super::exports![softcuda_last_report, softcuda_keep_counters, softcuda_take_counters];
