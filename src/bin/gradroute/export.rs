//! Parts of a ledger as files for other programs.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use gradroute::provenance::query::{Archive, Subject};
use gradroute::{Error, Result};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::arguments::{ExportArguments, Form, Table};
use crate::integrity::opened;
use crate::shown::{Part, Shown};

/// A column with its name.
struct Column {
    name: String,
    values: Values,
}

enum Values {
    Ids(Vec<u64>),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

pub fn export(question: &ExportArguments, quiet: bool) -> Result<Shown> {
    let archive = opened(&question.ledger, quiet)?;
    let members = match question.subject()? {
        Some(subject) => Some(members(&archive, &subject)?),
        None => None,
    };
    let wanted = |id: u64| members.as_ref().is_none_or(|ids| ids.contains(&id));
    let columns = match question.table {
        Table::Samples => samples(&archive, wanted),
        Table::Influence => influence(&archive, wanted)?,
        Table::Events => events(&archive, wanted)?,
    };
    let rows = columns.first().map_or(0, |column| column.values.len());
    let file = File::create(&question.out).map_err(io(&question.out))?;
    match question.format {
        Form::Csv => csv(&columns, rows, file).map_err(io(&question.out))?,
        Form::Json => objects(&columns, rows, file).map_err(io(&question.out))?,
        Form::Parquet => parquet(columns, file).map_err(|error| Error::Refused {
            what: question.out.display().to_string(),
            reason: error.to_string(),
        })?,
    }
    let out = question.out.display().to_string();
    let fact = json!({"out": out, "rows": rows, "ledger_head": archive.reader().head()});
    let part = Part { title: format!("{rows} rows in {out}"), ..Part::default() };
    Ok(Shown::new("Exported", &fact)?.with(part))
}

fn members(archive: &Archive, subject: &Subject) -> Result<HashSet<u64>> {
    Ok(archive.members(subject)?.into_iter().collect())
}

/// Names the file in an error of the operating system.
pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.into(), source }
}

fn samples(archive: &Archive, wanted: impl Fn(u64) -> bool) -> Vec<Column> {
    let samples: Vec<_> =
        archive.reader().info().samples.iter().filter(|it| wanted(it.id)).collect();
    let hash = |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        column("sample", Values::Ids(samples.iter().map(|it| it.id).collect())),
        column("category", Values::Texts(samples.iter().map(|it| it.category.clone()).collect())),
        column(
            "content_hash",
            Values::Texts(samples.iter().map(|it| hash(&it.content_hash)).collect()),
        ),
    ]
}

fn influence(archive: &Archive, wanted: impl Fn(u64) -> bool) -> Result<Vec<Column>> {
    let (sums, names) = (archive.influence(), archive.blocks());
    let (mut ids, mut categories, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
    let mut numbers = [const { Vec::new() }; 5];
    for &id in sums.ids().iter().filter(|id| wanted(**id)) {
        let category = &archive.sample(id)?.category;
        let (Some(sketch), Some(totals)) = (sums.sketch(id), sums.totals(id)) else { continue };
        for ((block, part), it) in names.iter().zip(sketch.chunks(sums.sketch_len())).zip(totals) {
            ids.push(id);
            categories.push(category.clone());
            blocks.push(block.clone());
            let square: f64 = part.iter().map(|&it| f64::from(it) * f64::from(it)).sum();
            let amounts = [square.sqrt(), it.pushed, it.exposure, it.stepped_sq, it.sq_norm];
            numbers.iter_mut().zip(amounts).for_each(|(all, one)| all.push(one));
        }
    }
    let mut columns = vec![
        column("sample", Values::Ids(ids)),
        column("category", Values::Texts(categories)),
        column("block", Values::Texts(blocks)),
    ];
    // What `trace forward` calls them.
    let names = ["moved", "path", "applied", "stepped_sq", "sq_norm"];
    columns
        .extend(names.iter().zip(numbers).map(|(name, all)| column(*name, Values::Numbers(all))));
    Ok(columns)
}

fn events(archive: &Archive, wanted: impl Fn(u64) -> bool) -> Result<Vec<Column>> {
    let names = archive.blocks();
    let (mut steps, mut ids) = (Vec::new(), Vec::new());
    let mut single = [const { Vec::new() }; 4];
    let mut wide = vec![Vec::new(); 3 * names.len()];
    for events in archive.reader().events() {
        let events = events?;
        for row in (0..events.len()).filter(|&row| wanted(events.sample[row])) {
            steps.push(events.step[row]);
            ids.push(events.sample[row]);
            let facts =
                [&events.noise_level, &events.step_size, &events.optimizer_scale, &events.gate];
            single.iter_mut().zip(facts).for_each(|(all, it)| all.push(f64::from(it[row])));
            for (kind, it) in [&events.route, &events.flow, &events.sq_norm].iter().enumerate() {
                for b in 0..names.len() {
                    wide[kind * names.len() + b].push(f64::from(it[row * names.len() + b]));
                }
            }
        }
    }
    let mut columns = vec![column("step", Values::Ids(steps)), column("sample", Values::Ids(ids))];
    let facts = ["noise_level", "step_size", "optimizer_scale", "gate"];
    columns.extend(facts.iter().zip(single).map(|(name, all)| column(*name, Values::Numbers(all))));
    let kinds = ["route", "flow", "sq_norm"].into_iter();
    let heads = kinds.flat_map(|kind| names.iter().map(move |block| format!("{kind}.{block}")));
    columns.extend(heads.zip(wide).map(|(name, all)| column(name, Values::Numbers(all))));
    Ok(columns)
}

fn column(name: impl Into<String>, values: Values) -> Column {
    Column { name: name.into(), values }
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Ids(all) => all.len(),
            Self::Numbers(all) => all.len(),
            Self::Texts(all) => all.len(),
        }
    }

    /// Empty, or null, for what is no number.
    fn at(&self, row: usize) -> Value {
        match self {
            Self::Ids(all) => all[row].into(),
            Self::Numbers(all) => json!(all[row]),
            Self::Texts(all) => all[row].clone().into(),
        }
    }
}

/// RFC 4180.
fn csv(columns: &[Column], rows: usize, file: File) -> std::io::Result<()> {
    let quoted = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let cell = |value: Value| match value {
        Value::String(text) => quoted(&text),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut out = BufWriter::new(file);
    let head: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
    write!(out, "{}\r\n", head.join(","))?;
    for row in 0..rows {
        let cells: Vec<String> = columns.iter().map(|it| cell(it.values.at(row))).collect();
        write!(out, "{}\r\n", cells.join(","))?;
    }
    out.flush()
}

/// An array of objects.
fn objects(columns: &[Column], rows: usize, file: File) -> std::io::Result<()> {
    let mut out = BufWriter::new(file);
    write!(out, "[")?;
    for row in 0..rows {
        let fields = columns.iter().map(|it| (it.name.clone(), it.values.at(row)));
        let object = Value::Object(fields.collect());
        write!(out, "{}\n{object}", if row == 0 { "" } else { "," })?;
    }
    writeln!(out, "\n]")?;
    out.flush()
}

fn parquet(columns: Vec<Column>, file: File) -> parquet::errors::Result<()> {
    let arrays = columns.into_iter().map(|column| {
        let array: ArrayRef = match column.values {
            Values::Ids(all) => Arc::new(UInt64Array::from(all)),
            Values::Numbers(all) => Arc::new(Float64Array::from(all)),
            Values::Texts(all) => Arc::new(StringArray::from(all)),
        };
        (column.name, array)
    });
    let batch = RecordBatch::try_from_iter(arrays)?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}
