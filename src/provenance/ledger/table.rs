//! Tables as Parquet files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::files::{bad, io, write_whole};
use crate::Result;

/// A table being put together.
pub(super) struct Table(Vec<(&'static str, ArrayRef)>);

impl Table {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn column(mut self, name: &'static str, values: impl Array + 'static) -> Self {
        self.0.push((name, Arc::new(values)));
        self
    }

    /// A column of lists of `width` numbers, row-major.
    pub(super) fn lists(self, name: &'static str, width: usize, values: Vec<f32>) -> Self {
        let item = Arc::new(Field::new("element", DataType::Float32, false));
        let values = Arc::new(Float32Array::from(values));
        self.column(name, FixedSizeListArray::new(item, width as i32, values, None))
    }

    /// Writes the file whole; returns its number of rows.
    pub(super) fn write(self, path: &Path) -> Result<u64> {
        let batch = RecordBatch::try_from_iter(self.0).map_err(|error| bad(path, error))?;
        write_whole(path, |file| {
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties(&batch)))
                .map_err(|error| bad(path, error))?;
            writer.write(&batch).map_err(|error| bad(path, error))?;
            writer.close().map_err(|error| bad(path, error))?;
            Ok(())
        })?;
        Ok(batch.num_rows() as u64)
    }
}

/// Zstandard; floats split into byte planes, where exponents compress, instead of dictionaries.
fn properties(batch: &RecordBatch) -> WriterProperties {
    const ROWS: usize = 1 << 14;
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("gradroute {}", env!("CARGO_PKG_VERSION")))
        .set_max_row_group_row_count(Some(ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::default()));
    for field in batch.schema().fields() {
        let name = field.name().as_str();
        let path = match field.data_type() {
            DataType::FixedSizeList(..) => vec![name, "list", "element"],
            DataType::Float64 => vec![name],
            _ => continue,
        };
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        properties = properties
            .set_column_dictionary_enabled(path.clone().into(), false)
            .set_column_encoding(path.into(), Encoding::BYTE_STREAM_SPLIT);
    }
    properties.build()
}

fn builder(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(io(path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| bad(path, error))
}

/// A table read back.
pub(super) struct ReadTable {
    path: PathBuf,
    batches: Vec<RecordBatch>,
}

impl ReadTable {
    /// Some columns, a few thousand rows at a time.
    pub(super) fn stream(
        path: &Path,
        columns: &[&str],
    ) -> Result<impl Iterator<Item = Result<Self>>> {
        let builder = builder(path)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        let batches = builder.with_projection(mask).with_batch_size(1 << 12).build();
        let path = path.to_owned();
        Ok(batches.map_err(|error| bad(&path, error))?.map(move |batch| {
            let batches = vec![batch.map_err(|error| bad(&path, error))?];
            Ok(Self { path: path.clone(), batches })
        }))
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let batches = builder(path)?
            .build()
            .map_err(|error| bad(path, error))?
            .collect::<Result<_, _>>()
            .map_err(|error| bad(path, error))?;
        Ok(Self { path: path.to_owned(), batches })
    }

    /// A column of numbers; `null` stands for a missing one where that is allowed.
    pub(super) fn numbers<T: ArrowPrimitiveType>(
        &self,
        name: &str,
        null: Option<T::Native>,
    ) -> Result<Vec<T::Native>> {
        let mut all = Vec::new();
        for array in self.arrays(name)? {
            let Some(array) = array.as_primitive_opt::<T>() else {
                return Err(self.unexpected(name, array));
            };
            match null {
                Some(null) => all.extend(array.iter().map(|value| value.unwrap_or(null))),
                None if array.null_count() == 0 => all.extend(array.values()),
                None => return Err(bad(&self.path, format!("column {name} has missing values"))),
            }
        }
        Ok(all)
    }

    /// Whether there is a column by this name; not in a table without rows.
    pub(super) fn has(&self, name: &str) -> bool {
        self.batches.iter().any(|batch| batch.column_by_name(name).is_some())
    }

    /// Numbers in each list of a column; none where there is no column of lists by this name.
    pub(super) fn width(&self, name: &str) -> Option<usize> {
        let lists = self.batches.first()?.column_by_name(name)?.as_fixed_size_list_opt()?;
        Some(lists.value_length() as usize)
    }

    /// A column of lists of `width` numbers, row-major.
    pub(super) fn lists(&self, name: &str, width: usize) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for array in self.arrays(name)? {
            let lists = array
                .as_fixed_size_list_opt()
                .filter(|lists| lists.value_length() as usize == width && lists.null_count() == 0);
            let Some(lists) = lists else { return Err(self.unexpected(name, array)) };
            let values = lists.values().as_primitive_opt::<Float32Type>();
            let Some(values) = values.filter(|values| values.null_count() == 0) else {
                return Err(self.unexpected(name, array));
            };
            all.extend(values.values());
        }
        Ok(all)
    }

    /// A column of strings.
    pub(super) fn strings(&self, name: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for array in self.arrays(name)? {
            let strings = array.as_string_opt::<i32>().filter(|it| it.null_count() == 0);
            let Some(strings) = strings else { return Err(self.unexpected(name, array)) };
            all.extend(strings.iter().flatten().map(str::to_owned));
        }
        Ok(all)
    }

    /// A column of digests.
    pub(super) fn digests(&self, name: &str) -> Result<Vec<[u8; 32]>> {
        let mut all = Vec::new();
        for array in self.arrays(name)? {
            let digests = array
                .as_fixed_size_binary_opt()
                .filter(|it| it.value_length() == 32 && it.null_count() == 0);
            let Some(digests) = digests else { return Err(self.unexpected(name, array)) };
            all.extend(digests.iter().flatten().filter_map(|it| <[u8; 32]>::try_from(it).ok()));
        }
        Ok(all)
    }

    fn arrays(&self, name: &str) -> Result<Vec<&ArrayRef>> {
        let column = |batch| RecordBatch::column_by_name(batch, name);
        let arrays: Option<Vec<_>> = self.batches.iter().map(column).collect();
        arrays.ok_or_else(|| bad(&self.path, format!("column {name} is missing")))
    }

    fn unexpected(&self, name: &str, array: &ArrayRef) -> crate::Error {
        let problem = format!("column {name} is of unexpected type {}", array.data_type());
        bad(&self.path, problem)
    }
}
