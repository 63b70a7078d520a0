//! Reading one block's table, a row group at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::ROWS;
use crate::Result;
use crate::provenance::ledger::files::{bad, io};

/// The columns, with the physical types they have in the file.
const COLUMNS: [(&str, Type); 4] = [
    ("sample", Type::INT64),
    ("scale", Type::FLOAT),
    ("square", Type::DOUBLE),
    ("sketch", Type::FIXED_LEN_BYTE_ARRAY),
];

/// A table whose description was read and found to be as an index has it.
pub(super) struct Part {
    path: PathBuf,
    metadata: ParquetMetaData,
    /// Bytes per value of each column.
    widths: [usize; 4],
}

/// The values of a row group, page by page and little-endian.
pub(super) struct Group {
    pub ids: Vec<Bytes>,
    pub scales: Vec<Bytes>,
    pub squares: Vec<Bytes>,
    pub codes: Vec<Bytes>,
}

impl Part {
    /// Opens the table of `samples` rows with `width` bytes of codes in each.
    pub(super) fn open(path: &Path, samples: usize, width: usize) -> Result<Self> {
        let file = File::open(path).map_err(io(path))?;
        let size = file.metadata().map_err(io(path))?.len();
        let metadata = ParquetMetaDataReader::new()
            .parse_and_finish(&file)
            .map_err(|error| bad(path, error))?;
        let part = Self { path: path.to_owned(), metadata, widths: [8, 4, 8, width] };
        part.check(samples, size).map_err(|problem| bad(path, problem))?;
        Ok(part)
    }

    fn check(&self, samples: usize, size: u64) -> Result<(), String> {
        let schema = self.metadata.file_metadata().schema_descr();
        let fits = schema.columns().iter().zip(COLUMNS).all(|(column, (name, kind))| {
            (column.name(), column.physical_type(), column.max_def_level()) == (name, kind, 0)
        });
        if schema.num_columns() != COLUMNS.len() || !fits {
            return Err("its columns are not those of an index".into());
        }
        if schema.column(3).type_length() as usize != self.widths[3] {
            return Err(format!("its sketches are not {} bytes wide", self.widths[3]));
        }
        let groups = self.metadata.row_groups().iter().map(|group| group.num_rows());
        if !groups.eq((0..samples).step_by(ROWS).map(|at| ROWS.min(samples - at) as i64)) {
            return Err(format!("its row groups are not {samples} samples by {ROWS}"));
        }
        for column in self.metadata.row_groups().iter().flat_map(|group| group.columns()) {
            check_chunk(column, size)?;
        }
        Ok(())
    }

    /// Reads a row group into a buffer, in one go. The buffer is used again when no value of the
    /// group is held any more.
    pub(super) fn read(&self, group: usize, mut buffer: BytesMut) -> Result<(Group, Bytes)> {
        let columns = self.metadata.row_group(group).columns();
        let ranges = columns.iter().map(|column| column.byte_range());
        let start = ranges.clone().map(|(start, _)| start).min().unwrap_or(0);
        let end = ranges.map(|(start, len)| start + len).max().unwrap_or(0);
        buffer.resize((end - start) as usize, 0);
        let mut file = File::open(&self.path).map_err(io(&self.path))?;
        file.seek(SeekFrom::Start(start)).map_err(io(&self.path))?;
        file.read_exact(&mut buffer).map_err(io(&self.path))?;
        let bytes = buffer.freeze();
        let loaded = Arc::new(Loaded { start, bytes: bytes.clone() });
        let values = |at: usize| {
            self.values(group, at, &loaded)
                .map_err(|problem| bad(&self.path, format!("column {}: {problem}", COLUMNS[at].0)))
        };
        let group =
            Group { ids: values(0)?, scales: values(1)?, squares: values(2)?, codes: values(3)? };
        Ok((group, bytes))
    }

    /// A column's values of a row group. Without compression, and with no value missing, a page
    /// of plain encoding is the values and nothing else.
    fn values(
        &self,
        group: usize,
        at: usize,
        loaded: &Arc<Loaded>,
    ) -> Result<Vec<Bytes>, ParquetError> {
        let group = self.metadata.row_group(group);
        let (rows, width) = (group.num_rows() as usize, self.widths[at]);
        let mut pages = SerializedPageReader::new(loaded.clone(), group.column(at), rows, None)?;
        let (mut values, mut bytes) = (Vec::new(), 0);
        while let Some(page) = pages.get_next_page()? {
            let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else {
                return Err(ParquetError::General("its pages are not plain ones".into()));
            };
            if buf.len() != num_values as usize * width {
                return Err(ParquetError::General("a page is of the wrong size".into()));
            }
            bytes += buf.len();
            values.push(buf);
        }
        match bytes == rows * width {
            true => Ok(values),
            false => Err(ParquetError::General("rows are missing or too many".into())),
        }
    }
}

/// Whether a column's chunk lies in the file and is stored as it is; the library asserts the
/// signs.
fn check_chunk(column: &ColumnChunkMetaData, size: u64) -> Result<(), String> {
    let start = column.dictionary_page_offset().unwrap_or(0).min(column.data_page_offset());
    let end = column.data_page_offset().checked_add(column.compressed_size());
    let inside = end.is_some_and(|end| end >= 0 && end as u64 <= size);
    if start < 0 || column.compressed_size() < 0 || !inside {
        return Err("a column reaches past the end of the file".into());
    }
    let plain = column.compression() == Compression::UNCOMPRESSED;
    if !plain || column.dictionary_page_offset().is_some() {
        return Err("its columns are compressed or dictionary-encoded".into());
    }
    Ok(())
}

/// A piece of a file in memory; read without copying.
struct Loaded {
    start: u64,
    bytes: Bytes,
}

impl Loaded {
    fn slice(&self, start: u64, len: usize) -> Result<Bytes, ParquetError> {
        let at = start.checked_sub(self.start).map(|at| at as usize);
        match at.and_then(|at| Some(at..at.checked_add(len)?)) {
            Some(range) if range.end <= self.bytes.len() => Ok(self.bytes.slice(range)),
            _ => Err(ParquetError::EOF("a page reaches past its row group".into())),
        }
    }
}

impl Length for Loaded {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Loaded {
    type T = <Bytes as ChunkReader>::T;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let left = Length::len(self).saturating_sub(start) as usize;
        self.slice(start, left)?.get_read(0)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.slice(start, length)
    }
}
