//! Writing an index, block after block.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{FixedSizeBinaryArray, Float32Array, Float64Array, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use faer::{Mat, Par};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use safetensors::tensor::{Dtype, TensorView};

use super::{Contents, FORMAT, GRAM, INDEX, Index, Precision, ROWS, gram_name, part_name};
use crate::provenance::influence::dot;
use crate::provenance::ledger::FileEntry;
use crate::provenance::ledger::files::{bad, digest, io, sync_dir, write_bytes};
use crate::provenance::query::Citation;
use crate::provenance::whitening::{SLICE, add_rows};
use crate::{Error, Result};

/// Writes an index from sums that are at hand block by block. Costs `samples · B · K²` for what
/// [`Index::whitening`] needs; holds one row group, 8 bytes per sample and `K²` doubles.
pub struct IndexWriter {
    dir: PathBuf,
    ids: Vec<u64>,
    schema: Arc<Schema>,
    contents: Contents,
    /// The table being written.
    open: Option<ArrowWriter<File>>,
    /// Its rows that were flushed.
    written: usize,
    group: Group,
    /// The block's products of sketches, `ΦᵀΦ [K, K]`: the lower triangle.
    gram: Mat<f64>,
}

/// Rows not flushed yet.
#[derive(Default)]
struct Group {
    scales: Vec<f32>,
    squares: Vec<f64>,
    codes: Vec<u8>,
    /// As they were given.
    sketches: Vec<f32>,
}

impl IndexWriter {
    /// Begins an index in a directory that is new or empty. `blocks` are the names, from input to
    /// output; `citation` is what the sums rest on.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no sample or block, sketches have no numbers or more
    /// than 2³⁰; [`Error::Ledger`] when the directory is not empty; [`Error::Io`].
    pub fn create(
        dir: impl AsRef<Path>,
        ids: Vec<u64>,
        blocks: Vec<String>,
        sketch_len: usize,
        precision: Precision,
        citation: Citation,
    ) -> Result<Self> {
        for (name, count) in [("ids", ids.len()), ("blocks", blocks.len())] {
            if count == 0 {
                return Err(Error::argument(name, "at least one", count));
            }
        }
        if !(1..=1 << 30).contains(&sketch_len) {
            return Err(Error::argument("sketch_len", "1 to 2^30", sketch_len));
        }
        let dir = claim(dir.as_ref())?;
        let binary = DataType::FixedSizeBinary((sketch_len * precision.bytes()) as i32);
        let schema = Schema::new(vec![
            Field::new("sample", DataType::UInt64, false),
            Field::new("scale", DataType::Float32, false),
            Field::new("square", DataType::Float64, false),
            Field::new("sketch", binary, false),
        ]);
        let contents = Contents {
            format: FORMAT,
            precision,
            sketch_len,
            blocks,
            samples: ids.len(),
            files: Vec::new(),
            grams: Vec::new(),
            citation,
        };
        let (schema, group) = (Arc::new(schema), Group::default());
        let gram = Mat::zeros(sketch_len, sketch_len);
        Ok(Self { dir, ids, schema, contents, open: None, written: 0, group, gram })
    }

    /// Adds the sums `[n, K]` of the next `n` samples in the current block; the next block begins
    /// when all samples were given.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is no whole number of sketches, or reaches past the block's
    /// last sample or the last block; [`Error::Io`] or [`Error::Ledger`] when it cannot be
    /// written.
    pub fn push(&mut self, sketches: &[f32]) -> Result<()> {
        let (len, block) = (self.contents.sketch_len, self.contents.files.len());
        let left = match self.contents.blocks.len() - block {
            0 => 0,
            _ => self.ids.len() - self.written - self.group.scales.len(),
        };
        if !sketches.len().is_multiple_of(len) || sketches.len() / len > left {
            let expected = format!("whole sketches of {len} numbers, at most {left} of them");
            return Err(Error::argument("sketches", expected, sketches.len()));
        }
        for sketch in sketches.chunks_exact(len) {
            let scale = self.contents.precision.encode(sketch, &mut self.group.codes);
            self.group.scales.push(scale);
            self.group.sketches.extend(sketch);
            self.group.squares.push(dot(sketch, sketch));
            let full = self.group.scales.len() == ROWS;
            if full || self.written + self.group.scales.len() == self.ids.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Makes it an index.
    ///
    /// # Errors
    /// [`Error::Argument`] when not all blocks were given; [`Error::Io`] when it cannot be
    /// written.
    pub fn finish(self) -> Result<Index> {
        let (given, blocks) = (self.contents.files.len(), self.contents.blocks.len());
        if given < blocks {
            return Err(Error::argument("blocks", format!("{blocks} whole ones"), given));
        }
        let text = serde_json::to_vec_pretty(&self.contents).expect("names and numbers are JSON");
        write_bytes(&self.dir.join(INDEX), &text)?;
        sync_dir(&self.dir)?;
        Index::open(self.dir)
    }

    /// Writes a row group, and closes the table when that was its last.
    fn flush(&mut self) -> Result<()> {
        let block = self.contents.files.len();
        let path = self.dir.join(part_name(block));
        let mut writer = match self.open.take() {
            Some(writer) => writer,
            None => create(&path, &self.schema)?,
        };
        let group = std::mem::take(&mut self.group);
        let rows = group.scales.len();
        for slice in group.sketches.chunks(SLICE * self.contents.sketch_len) {
            let slice: Vec<f64> = slice.iter().map(|&value| value.into()).collect();
            add_rows(&mut self.gram, &slice, Par::rayon(0));
        }
        let ids = self.ids[self.written..][..rows].to_vec();
        let width = self.contents.sketch_len * self.contents.precision.bytes();
        let codes = FixedSizeBinaryArray::try_new(width as i32, group.codes.into(), None);
        let batch = RecordBatch::try_new(
            self.schema.clone(),
            vec![
                Arc::new(UInt64Array::from(ids)),
                Arc::new(Float32Array::from(group.scales)),
                Arc::new(Float64Array::from(group.squares)),
                Arc::new(codes.map_err(|error| bad(&path, error))?),
            ],
        );
        let batch = batch.map_err(|error| bad(&path, error))?;
        writer.write(&batch).map_err(|error| bad(&path, error))?;
        self.written += rows;
        if self.written < self.ids.len() {
            self.open = Some(writer);
            return Ok(());
        }
        let file = writer.into_inner().map_err(|error| bad(&path, error))?;
        file.sync_all().map_err(io(&path))?;
        let gram = self.write_gram(block)?;
        self.contents.grams.push(gram);
        let rows = Some(self.ids.len() as u64);
        let table = entry(&self.dir, part_name(block), rows)?;
        self.contents.files.push(table);
        self.written = 0;
        Ok(())
    }

    /// Writes the block's products, and begins those of the next.
    fn write_gram(&mut self, block: usize) -> Result<FileEntry> {
        let len = self.contents.sketch_len;
        let gram = std::mem::replace(&mut self.gram, Mat::zeros(len, len));
        let numbers = (0..len).flat_map(|row| (0..len).map(move |column| (row, column)));
        let bytes: Vec<u8> = numbers.flat_map(|at| gram[at].to_le_bytes()).collect();
        let path = self.dir.join(gram_name(block));
        let tensor = TensorView::new(Dtype::F64, vec![len, len], &bytes);
        let text = tensor.and_then(|tensor| safetensors::serialize([(GRAM, tensor)], None));
        write_bytes(&path, &text.map_err(|error| bad(&path, error))?)?;
        entry(&self.dir, gram_name(block), None)
    }
}

/// What a file of the index is, now that it is written.
fn entry(dir: &Path, name: String, rows: Option<u64>) -> Result<FileEntry> {
    let (bytes, blake3) = digest(&dir.join(&name))?;
    Ok(FileEntry { name, rows, bytes, blake3 })
}

/// Makes sure of a directory that is empty; where it really lies.
pub(super) fn claim(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    if std::fs::read_dir(dir).map_err(io(dir))?.next().is_some() {
        return Err(bad(dir, "an index needs a directory of its own, this is not empty"));
    }
    dir.canonicalize().map_err(io(dir))
}

fn create(path: &Path, schema: &Arc<Schema>) -> Result<ArrowWriter<File>> {
    let dir = path.parent().expect("a table lies in its block's directory");
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let file = File::create(path).map_err(io(path))?;
    // No compression, which is the default; codes have no order that statistics could be of.
    let properties = WriterProperties::builder()
        .set_created_by(format!("gradroute {}", env!("CARGO_PKG_VERSION")))
        .set_max_row_group_row_count(Some(ROWS))
        .set_dictionary_enabled(false)
        .set_column_statistics_enabled(
            "sketch".into(),
            parquet::file::properties::EnabledStatistics::None,
        )
        .build();
    ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|error| bad(path, error))
}
