//! From a ledger to an index, without holding either.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::writer::claim;
use super::{Index, IndexWriter, Precision};
use crate::Result;
use crate::provenance::ledger::LedgerReader;
use crate::provenance::ledger::files::{bad, io};
use crate::provenance::query::Citation;

/// Bytes of sums that are added up at a time.
const SUMS: usize = 1 << 30;

impl Index {
    /// Builds the index of a ledger in a directory that is new or empty: the sums that
    /// [`LedgerReader::accumulator`] gives, rounded to `precision` at the end.
    ///
    /// The ledger's segments are read once, and what they say of each block set down in a file of
    /// its own beside the index; then block after block is added up. Holds 1 GiB of sums at most,
    /// beside 40 bytes per sample; on disk, the index itself and `4 K + 4` bytes for each row of
    /// the segments, until it is done. `progress` is told of the segments and blocks done, and of
    /// how many there are.
    ///
    /// # Errors
    /// [`Error::Ledger`](crate::Error::Ledger) or [`Error::Io`](crate::Error::Io) naming the file
    /// of ledger or index that cannot be read or written; [`Error::Argument`](crate::Error::Argument)
    /// when the ledger holds no step.
    pub fn build(
        reader: &LedgerReader,
        dir: impl AsRef<Path>,
        precision: Precision,
        progress: impl FnMut(usize, usize),
    ) -> Result<Self> {
        Self::build_within(reader, dir.as_ref(), precision, SUMS, progress)
    }

    pub(super) fn build_within(
        reader: &LedgerReader,
        dir: &Path,
        precision: Precision,
        sums: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self> {
        let (blocks, len) = (reader.info().blocks.len(), reader.info().sketch_len()?);
        let segments = reader.entries().iter().filter(|entry| entry.steps.is_some()).count();
        let mut done = 0..=segments + blocks;
        let mut step = || progress(done.next().unwrap_or(segments + blocks), segments + blocks);
        let dir = claim(dir)?;
        let mut sorted = Sorted::create(&dir, blocks, len)?;
        for index in 0..segments {
            step();
            sorted.add(reader, index)?;
        }
        let ids = std::mem::take(&mut sorted.ids);
        let (samples, names) = (ids.len(), reader.info().blocks.iter().map(|it| it.name.clone()));
        let citation = Citation::of_run(reader, samples);
        let mut writer = IndexWriter::create(dir, ids, names.collect(), len, precision, citation)?;
        let slice = (sums / (4 * len)).clamp(1, samples);
        for block in 0..blocks {
            step();
            for start in (0..samples).step_by(slice) {
                writer.push(&sorted.sums(block, start, slice.min(samples - start))?)?;
            }
        }
        step();
        writer.finish()
    }
}

/// The rows of all segments, set down by block: of each the sample's position, `u32`, and its
/// sketch.
struct Sorted {
    dir: PathBuf,
    len: usize,
    blocks: usize,
    positions: HashMap<u64, u32>,
    /// By position: in the order in which they were first seen.
    ids: Vec<u64>,
}

impl Sorted {
    /// Beside the index, not in it: a directory of the same name with `.building` after it.
    fn create(index: &Path, blocks: usize, len: usize) -> Result<Self> {
        let mut name = index.as_os_str().to_owned();
        name.push(".building");
        let dir = PathBuf::from(name);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(io(&dir)(error));
        }
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        Ok(Self { dir, len, blocks, positions: HashMap::new(), ids: Vec::new() })
    }

    fn path(&self, block: usize) -> PathBuf {
        self.dir.join(block.to_string())
    }

    /// Sets a segment's rows down.
    fn add(&mut self, reader: &LedgerReader, segment: usize) -> Result<()> {
        reader.sketches(segment, |ids, blocks, sketches| {
            let mut rows = vec![Vec::new(); self.blocks];
            for ((id, block), sketch) in ids.iter().zip(blocks).zip(sketches.chunks(self.len)) {
                let next = self.ids.len() as u32;
                let position = *self.positions.entry(*id).or_insert(next);
                if position == next {
                    self.ids.push(*id);
                }
                let rows: &mut Vec<u8> = &mut rows[*block as usize];
                rows.extend(position.to_le_bytes());
                rows.extend(sketch.iter().flat_map(|value| value.to_le_bytes()));
            }
            for (block, rows) in rows.iter().enumerate() {
                let path = self.path(block);
                let mut open = OpenOptions::new();
                let file = open.create(true).append(true).open(&path);
                file.and_then(|mut file| file.write_all(rows)).map_err(io(&path))?;
            }
            Ok(())
        })
    }

    /// Adds up `[count, K]` of a block, segment after segment as the ledger's writer did.
    fn sums(&self, block: usize, start: usize, count: usize) -> Result<Vec<f32>> {
        let path = self.path(block);
        let mut sums = vec![0.0; count * self.len];
        let mut file = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io(&path))?);
        let mut row = vec![0; 4 + 4 * self.len];
        let rows = file.get_ref().metadata().map_err(io(&path))?.len() / row.len() as u64;
        for _ in 0..rows {
            file.read_exact(&mut row).map_err(io(&path))?;
            let (words, _) = row.as_chunks::<4>();
            let position = u32::from_le_bytes(words[0]) as usize;
            let Some(at) = position.checked_sub(start).filter(|at| *at < count) else { continue };
            let values = words[1..].iter().map(|word| f32::from_le_bytes(*word));
            let sums = sums[at * self.len..][..self.len].iter_mut();
            sums.zip(values).for_each(|(sum, value)| *sum += value);
        }
        match rows {
            0 => Err(bad(&path, "the segments hold no row of this block")),
            _ => Ok(sums),
        }
    }
}

impl Drop for Sorted {
    fn drop(&mut self) {
        // What is left over is replaced by the next build.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
