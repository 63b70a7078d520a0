//! The tables of a run and of its segments, to and from their files.

use std::path::Path;

use arrow_array::types::{Float32Type, Float64Type, UInt32Type, UInt64Type};
use arrow_array::{
    FixedSizeBinaryArray, Float32Array, Float64Array, StringArray, UInt32Array, UInt64Array,
};

use super::events::Events;
use super::files::bad;
use super::info::{RunInfo, SampleInfo};
use super::table::{ReadTable, Table};
use crate::Result;
use crate::provenance::{Accumulator, BlockTotals, NormTrace};

const OUT_OF_ORDER: &str = "rows are not every block of each sample, in order";

/// Column of the samples that only some ledgers have.
const FINGERPRINT: &str = "fingerprint";

pub(super) fn write_samples(path: &Path, info: &RunInfo) -> Result<u64> {
    let samples = &info.samples;
    let hashes: Vec<u8> = samples.iter().flat_map(|sample| sample.content_hash).collect();
    let hashes = FixedSizeBinaryArray::try_new(32, hashes.into(), None);
    let table = Table::new()
        .column("sample", UInt64Array::from_iter_values(samples.iter().map(|it| it.id)))
        .column("category", StringArray::from_iter_values(samples.iter().map(|it| &it.category)))
        .column("content_hash", hashes.map_err(|error| bad(path, error))?);
    match info.fingerprint_len()? {
        0 => table.write(path),
        width => table.lists(FINGERPRINT, width, info.fingerprints.clone()).write(path),
    }
}

/// The samples and their fingerprints, if there are any.
pub(super) fn read_samples(path: &Path) -> Result<(Vec<SampleInfo>, Vec<f32>)> {
    let table = ReadTable::read(path)?;
    let ids = table.numbers::<UInt64Type>("sample", None)?;
    let categories = table.strings("category")?;
    let rest = categories.into_iter().zip(table.digests("content_hash")?);
    let samples = ids.into_iter().zip(rest);
    let samples = samples
        .map(|(id, (category, content_hash))| SampleInfo { id, category, content_hash })
        .collect();
    let fingerprints = match table.width(FINGERPRINT) {
        None => Vec::new(),
        Some(width) => table.lists(FINGERPRINT, width)?,
    };
    Ok((samples, fingerprints))
}

pub(super) fn write_events(path: &Path, events: &Events, blocks: usize) -> Result<u64> {
    let floats = |values: &Vec<f32>| Float32Array::from(values.clone());
    let levels = events.noise_level.iter().map(|level| (!level.is_nan()).then_some(*level));
    Table::new()
        .column("step", UInt64Array::from(events.step.clone()))
        .column("batch", UInt32Array::from(events.batch.clone()))
        .column("sample", UInt64Array::from(events.sample.clone()))
        .column("noise_level", levels.collect::<Float32Array>())
        .column("step_size", floats(&events.step_size))
        .column("optimizer_scale", floats(&events.optimizer_scale))
        .column("gate", floats(&events.gate))
        .lists("route", blocks, events.route.clone())
        .lists("flow", blocks, events.flow.clone())
        .lists("sq_norm", blocks, events.sq_norm.clone())
        .write(path)
}

pub(super) fn read_events(path: &Path, blocks: usize) -> Result<Events> {
    let table = ReadTable::read(path)?;
    let floats = |name| table.numbers::<Float32Type>(name, None);
    let step = table.numbers::<UInt64Type>("step", None)?;
    Ok(Events {
        batch: match table.has("batch") {
            true => table.numbers::<UInt32Type>("batch", None)?,
            false => vec![0; step.len()],
        },
        step,
        sample: table.numbers::<UInt64Type>("sample", None)?,
        noise_level: table.numbers::<Float32Type>("noise_level", Some(f32::NAN))?,
        step_size: floats("step_size")?,
        optimizer_scale: floats("optimizer_scale")?,
        gate: floats("gate")?,
        route: table.lists("route", blocks)?,
        flow: table.lists("flow", blocks)?,
        sq_norm: table.lists("sq_norm", blocks)?,
    })
}

/// One row per sample and block, a sample's blocks in order.
pub(super) fn write_influence(path: &Path, delta: &Accumulator) -> Result<u64> {
    let (samples, blocks) = (delta.len(), delta.blocks());
    let totals: Vec<_> = (0..samples).flat_map(|n| delta.totals_at(n)).collect();
    let sums = |of: fn(&BlockTotals) -> f64| {
        Float64Array::from_iter_values(totals.iter().map(|&totals| of(totals)))
    };
    let ids = delta.ids().iter().flat_map(|&id| std::iter::repeat_n(id, blocks));
    let block = (0..samples).flat_map(|_| 0..blocks as u32);
    let sketches = (0..samples).flat_map(|n| delta.sketch_at(n)).copied().collect();
    Table::new()
        .column("sample", UInt64Array::from_iter_values(ids))
        .column("block", UInt32Array::from_iter_values(block))
        .lists("sketch", delta.sketch_len(), sketches)
        .column("pushed", sums(|totals| totals.pushed))
        .column("exposure", sums(|totals| totals.exposure))
        .column("stepped_sq", sums(|totals| totals.stepped_sq))
        .column("sq_norm", sums(|totals| totals.sq_norm))
        .write(path)
}

/// One row per sample and noise-level bin it was seen in.
pub(super) fn write_norms(path: &Path, delta: &Accumulator) -> Result<u64> {
    let bins = delta.ids().iter().enumerate().flat_map(|(n, &id)| {
        let bins = delta.norms_at(n).iter().enumerate();
        bins.map(move |(bin, trace)| (id, bin as u32, *trace))
    });
    let rows: Vec<(u64, u32, NormTrace)> = bins.filter(|(_, _, it)| it.events > 0).collect();
    Table::new()
        .column("sample", UInt64Array::from_iter_values(rows.iter().map(|row| row.0)))
        .column("bin", UInt32Array::from_iter_values(rows.iter().map(|row| row.1)))
        .column("events", UInt32Array::from_iter_values(rows.iter().map(|row| row.2.events)))
        .column("measured", UInt32Array::from_iter_values(rows.iter().map(|row| row.2.measured)))
        .column("norm_sum", Float64Array::from_iter_values(rows.iter().map(|row| row.2.sum)))
        .column("last_norm", Float32Array::from_iter_values(rows.iter().map(|row| row.2.last)))
        .write(path)
}

/// Adds a segment's two influence tables to an accumulator.
pub(super) fn merge_segment(total: &mut Accumulator, influence: &Path, norms: &Path) -> Result<()> {
    let table = ReadTable::read(influence)?;
    let (blocks, len) = (total.blocks(), total.blocks() * total.sketch_len());
    let ids = table.numbers::<UInt64Type>("sample", None)?;
    let block = table.numbers::<UInt32Type>("block", None)?;
    let in_order = ids.chunks(blocks).all(|sample| sample.iter().all(|id| *id == sample[0]))
        && block.iter().enumerate().all(|(row, &block)| block as usize == row % blocks);
    if !in_order || ids.len() % blocks != 0 {
        return Err(bad(influence, OUT_OF_ORDER));
    }
    let sketches = table.lists("sketch", total.sketch_len())?;
    let [pushed, exposure, stepped_sq, sq_norm] = ["pushed", "exposure", "stepped_sq", "sq_norm"]
        .map(|name| table.numbers::<Float64Type>(name, None));
    let (pushed, exposure, stepped_sq, sq_norm) = (pushed?, exposure?, stepped_sq?, sq_norm?);
    let mut traces = NormRows::read(norms)?;
    for (n, sample) in ids.chunks(blocks).enumerate() {
        let totals: Vec<_> = (n * blocks..(n + 1) * blocks)
            .map(|row| BlockTotals {
                pushed: pushed[row],
                exposure: exposure[row],
                stepped_sq: stepped_sq[row],
                sq_norm: sq_norm[row],
            })
            .collect();
        let norms = traces.take(sample[0], total.bins());
        total.merge_row(sample[0], &sketches[n * len..][..len], &totals, &norms)?;
    }
    match traces.rows.next() {
        None => Ok(()),
        Some((id, bin, _)) => Err(bad(norms, format!("sample {id}, bin {bin} is out of place"))),
    }
}

/// The sketches of a segment's influence table, some rows at a time: samples, blocks, and
/// sketches `[rows, K]`.
pub(super) fn stream_sketches(
    path: &Path,
    [blocks, len]: [usize; 2],
    mut each: impl FnMut(&[u64], &[u32], &[f32]) -> Result<()>,
) -> Result<()> {
    // Of the row before: every sample's blocks follow each other, in order.
    let (mut sample, mut next) = (None, 0);
    for table in ReadTable::stream(path, &["sample", "block", "sketch"])? {
        let table = table?;
        let ids = table.numbers::<UInt64Type>("sample", None)?;
        let block = table.numbers::<UInt32Type>("block", None)?;
        for (&id, &block) in ids.iter().zip(&block) {
            if block as usize != next || (next > 0 && sample != Some(id)) {
                return Err(bad(path, OUT_OF_ORDER));
            }
            (sample, next) = (Some(id), (next + 1) % blocks);
        }
        each(&ids, &block, &table.lists("sketch", len)?)?;
    }
    if next == 0 { Ok(()) } else { Err(bad(path, OUT_OF_ORDER)) }
}

/// The rows of a segment's norm table that were not taken yet.
struct NormRows {
    rows: std::iter::Peekable<std::vec::IntoIter<(u64, u32, NormTrace)>>,
}

impl NormRows {
    fn read(path: &Path) -> Result<Self> {
        let table = ReadTable::read(path)?;
        let ids = table.numbers::<UInt64Type>("sample", None)?;
        let bins = table.numbers::<UInt32Type>("bin", None)?;
        let events = table.numbers::<UInt32Type>("events", None)?;
        let measured = table.numbers::<UInt32Type>("measured", None)?;
        let sums = table.numbers::<Float64Type>("norm_sum", None)?;
        let last = table.numbers::<Float32Type>("last_norm", None)?;
        let row = |n: usize| {
            let (events, measured) = (events[n], measured[n]);
            (ids[n], bins[n], NormTrace { events, measured, sum: sums[n], last: last[n] })
        };
        let rows: Vec<_> = (0..ids.len()).map(row).collect();
        Ok(Self { rows: rows.into_iter().peekable() })
    }

    /// The next rows, as long as they are this sample's.
    fn take(&mut self, id: u64, bins: usize) -> Vec<NormTrace> {
        let mut traces = vec![NormTrace::default(); bins];
        let own = |row: &(u64, u32, NormTrace)| row.0 == id && (row.1 as usize) < bins;
        while let Some((_, bin, trace)) = self.rows.next_if(own) {
            traces[bin as usize] = trace;
        }
        traces
    }
}
