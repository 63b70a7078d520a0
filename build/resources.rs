//! What each kernel takes of a multiprocessor, from the assembler's report, and the committed table
//! that it is held to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

#[path = "occupancy.rs"]
mod occupancy;

/// The committed table, from the root of the repository.
pub const TABLE: &str = "benches/record/cuda-resources.md";
/// The command that writes it.
pub const BLESS: &str = "cargo xtask gates --bless";

/// Dynamic shared memory that the usual plan asks for, in bytes, by the beginning of the kernel's
/// name; the first that fits counts. The largest of three-stage copies, a count sketch's places and
/// the staging of a sketch of 256 numbers.
const PLANNED: [(&str, u32); 10] = [
    ("linear_wgrad_", 90112),
    ("linear_factored_wgrad_", 49152),
    ("conv2d_wgrad_", 90112),
    ("lora_wgrad_", 90112),
    // Two stages of 320 + 320 columns.
    ("lora_factors_", 41984),
    ("linear_dgrad_f32", 55296),
    ("linear_dgrad_narrow_", 55296),
    ("linear_dgrad_", 49152),
    ("conv2d_dgrad_f32", 55296),
    ("conv2d_dgrad_", 49152),
];

/// One kernel on one architecture, as the assembler reports it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub kernel: String,
    pub arch: u32,
    pub registers: u32,
    /// Static shared memory, in bytes.
    pub shared: u32,
    /// Bytes of stack frame, spill stores and spill loads.
    pub spilled: [u32; 3],
}

/// A row of the table.
#[derive(Debug, PartialEq)]
pub struct Row {
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory that plans ask for, in bytes.
    pub planned: u32,
    /// By architecture.
    pub cells: BTreeMap<u32, Cell>,
}

/// A kernel on one architecture: registers a thread, bytes of static shared memory, and blocks that
/// a multiprocessor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub registers: u32,
    pub shared: u32,
    pub blocks: u32,
}

/// Rows by kernel.
pub type Table = BTreeMap<String, Row>;

/// What a build's reports say.
#[derive(Debug)]
pub struct Found {
    pub table: Table,
    /// The kernels that spill registers or use a stack frame, one line each.
    pub spills: Vec<String>,
}

/// Reads the reports and fat binaries that a build left of these kernel sources.
///
/// # Errors
///
/// Files that cannot be read, a report in an unknown form, kernels that state no number of threads.
pub fn collect(folder: &Path, sources: &[String]) -> Result<Found, String> {
    let mut all = Vec::new();
    let mut threads = BTreeMap::new();
    for name in sources {
        let read = |kind: &str| {
            let path = folder.join(format!("{name}.{kind}"));
            fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        all.extend(usages(&String::from_utf8_lossy(&read("report")?))?);
        threads.extend(bounds(&read("fatbin")?));
    }
    Ok(Found { table: table(&all, &threads)?, spills: spills(&all) })
}

/// Dynamic shared memory that the usual plan of a kernel asks for, in bytes.
pub fn planned(kernel: &str) -> u32 {
    PLANNED.iter().find(|(begin, _)| kernel.starts_with(begin)).map_or(0, |&(_, bytes)| bytes)
}

/// Reads the assembler's report.
///
/// # Errors
///
/// Lines in an unknown form.
pub fn usages(report: &str) -> Result<Vec<Usage>, String> {
    let mut found: Vec<Usage> = Vec::new();
    for line in report.lines() {
        let strange = || format!("a report that is not understood: {}", line.trim());
        if let Some((_, entry)) = line.split_once("Compiling entry function '") {
            let (kernel, arch) = entry.split_once("' for 'sm_").ok_or_else(strange)?;
            let arch = arch.trim_end().trim_end_matches('\'').parse().map_err(|_| strange())?;
            found.push(Usage { kernel: kernel.into(), arch, ..Usage::default() });
        } else if line.contains("bytes stack frame") {
            let spilled = ["bytes stack frame", "bytes spill stores", "bytes spill loads"]
                .map(|what| count(line, what));
            let [Some(stack), Some(stores), Some(loads)] = spilled else { return Err(strange()) };
            found.last_mut().ok_or_else(strange)?.spilled = [stack, stores, loads];
        } else if let Some((_, used)) = line.split_once("Used ") {
            let usage = found.last_mut().ok_or_else(strange)?;
            usage.registers = count(used, "registers").ok_or_else(strange)?;
            usage.shared = count(used, "bytes smem").unwrap_or(0);
        }
    }
    match found.iter().find(|usage| usage.registers == 0) {
        Some(usage) => Err(format!("no registers are reported for {}", usage.kernel)),
        None => Ok(found),
    }
}

/// The number before a word in a list parted by commas.
fn count(list: &str, what: &str) -> Option<u32> {
    let item = list.split(',').find_map(|item| item.trim().strip_suffix(what))?;
    item.trim().parse().ok()
}

/// The kernels that spill registers or use a stack frame.
pub fn spills(usages: &[Usage]) -> Vec<String> {
    let spilling = usages.iter().filter(|usage| usage.spilled != [0; 3]);
    let line = |usage: &Usage| {
        let [stack, stores, loads] = usage.spilled;
        format!(
            "{} for sm_{}: {stack} bytes of stack frame, {stores} of spill stores, {loads} of loads",
            usage.kernel, usage.arch
        )
    };
    spilling.map(line).collect()
}

/// The threads of a block that each kernel states by `__launch_bounds__`, from the PTX inside an
/// uncompressed fat binary.
pub fn bounds(image: &[u8]) -> BTreeMap<String, u32> {
    let text = String::from_utf8_lossy(image);
    let entries = text.split(".entry ").skip(1);
    let bound = |entry: &str| {
        let (head, _) = entry.split_once('{')?;
        let (name, _) = head.split_once('(')?;
        let (_, threads) = head.split_once(".maxntid ")?;
        let threads = threads.split([',', '\n']).next()?.trim().parse().ok()?;
        Some((name.to_string(), threads))
    };
    entries.filter_map(bound).collect()
}

/// Brings reports and launch bounds together. Architectures without known limits are left out.
///
/// # Errors
///
/// Kernels that state no number of threads.
pub fn table(usages: &[Usage], bounds: &BTreeMap<String, u32>) -> Result<Table, String> {
    let mut table = Table::new();
    for usage in usages {
        let kernel = &usage.kernel;
        let threads =
            *bounds.get(kernel).ok_or_else(|| format!("{kernel}: no __launch_bounds__"))?;
        let planned = planned(kernel);
        let shared = usage.shared + planned;
        let blocks = occupancy::resident(usage.arch, threads, usage.registers, shared);
        let Some(blocks) = blocks else { continue };
        let cell = Cell { registers: usage.registers, shared: usage.shared, blocks };
        let row = Row { threads, planned, cells: BTreeMap::new() };
        table.entry(kernel.clone()).or_insert(row).cells.insert(usage.arch, cell);
    }
    Ok(table)
}

/// The table's text.
pub fn write(table: &Table, compiler: &str, archs: &[u32]) -> String {
    let mut text = format!(
        "# What the CUDA kernels take of a multiprocessor\n\n\
         From the report of the assembler of CUDA {compiler}. By compute capability: registers a thread / \
         bytes of\nstatic shared memory / blocks that a multiprocessor holds at once. *Planned*: bytes of \
         dynamic shared\nmemory that the usual plan asks for. No kernel spills registers or uses a stack \
         frame.\n\nEvery build of the kernels with this compiler is held to the table; `{BLESS}` writes \
         it anew.\n\n| kernel | threads | planned |"
    );
    for arch in archs {
        let _ = write!(text, " {arch} |");
    }
    text += "\n|---|---|---|";
    text += &"---|".repeat(archs.len());
    for (kernel, row) in table {
        let _ = write!(text, "\n| {kernel} | {} | {} |", row.threads, row.planned);
        for Cell { registers, shared, blocks } in row.cells.values() {
            let _ = write!(text, " {registers} / {shared} / {blocks} |");
        }
    }
    text + "\n"
}

/// Reads a table's text.
///
/// # Errors
///
/// A row or cell in another form.
pub fn parse(text: &str) -> Result<Table, String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut rows = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    let strange = |what: &str| format!("{TABLE}: not understood: {what:?}");
    let head = rows.next().unwrap_or_default();
    let archs: Vec<u32> = head.iter().skip(3).map_while(|arch| arch.parse().ok()).collect();
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| strange(text));
    let cell = |text: &str| {
        let numbers = text.split('/').map(number).collect::<Result<Vec<u32>, String>>()?;
        let [registers, shared, blocks] = numbers[..] else { return Err(strange(text)) };
        Ok(Cell { registers, shared, blocks })
    };
    let mut table = Table::new();
    for row in rows {
        let [kernel, threads, planned, cells @ ..] = &row[..] else {
            return Err(strange(&row.join(" | ")));
        };
        let cells = cells.iter().map(|text| cell(text)).collect::<Result<Vec<Cell>, String>>()?;
        let cells = archs.iter().copied().zip(cells).collect();
        let row = Row { threads: number(threads)?, planned: number(planned)?, cells };
        table.insert((*kernel).to_string(), row);
    }
    Ok(table)
}

/// Registers by which two runs of the assembler over the same kernel may differ.
const JITTER: u32 = 4;

/// What became worse than the committed table, or is missing there, one line each.
pub fn regressions(found: &Table, committed: &Table) -> Vec<String> {
    compare(found, committed, |new, old| {
        new.registers <= old.registers + JITTER && new.blocks >= old.blocks
    })
}

/// What is not as in the committed table, or is missing on one side, one line each.
pub fn differences(found: &Table, committed: &Table) -> Vec<String> {
    let mut lines = compare(found, committed, |new, old| {
        new.registers.abs_diff(old.registers) <= JITTER
            && (new.shared, new.blocks) == (old.shared, old.blocks)
    });
    for (kernel, row) in committed {
        match found.get(kernel) {
            None => lines.push(format!("{kernel} is in the table only")),
            Some(new) if (new.threads, new.planned) != (row.threads, row.planned) => {
                lines.push(format!("{kernel}: other threads or planned bytes than the table has"));
            }
            Some(_) => {}
        }
    }
    lines
}

/// The cells that are missing in the committed table or, beside those there, not `good`.
fn compare(found: &Table, committed: &Table, good: fn(Cell, Cell) -> bool) -> Vec<String> {
    let cells = found
        .iter()
        .flat_map(|(kernel, row)| row.cells.iter().map(move |(&arch, &cell)| (kernel, arch, cell)));
    let complaint = |(kernel, arch, cell): (&String, u32, Cell)| {
        let Some(&old) = committed.get(kernel).and_then(|row| row.cells.get(&arch)) else {
            return Some(format!("{kernel} for sm_{arch} is not in the table"));
        };
        (!good(cell, old)).then(|| {
            format!(
                "{kernel} for sm_{arch}: {} registers, {} bytes and {} blocks a multiprocessor, the table \
                 has {}, {} and {}",
                cell.registers, cell.shared, cell.blocks, old.registers, old.shared, old.blocks
            )
        })
    };
    cells.filter_map(complaint).collect()
}
